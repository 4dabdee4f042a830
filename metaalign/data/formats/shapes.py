"""The table of all formats, by the shapes of their rows, and how to find the format of a row.

The keys of a row decide its shape. If two shapes share keys, the values decide. A null counts as a
missing key, since Parquet fills missing values with nulls. The modules that read a shape show a row
of it.
"""

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from metaalign.data.formats import telling
from metaalign.data.formats.chats import (
    ANSWER_KEYS,
    LOSS_MASK,
    REJECTED,
    WORSE,
    helpsteer_scores,
    read_answer,
    read_chat,
    read_sharegpt,
    read_text,
)
from metaalign.data.formats.compared import (
    COMPARED,
    OPENAI,
    SHP,
    WINNER_KEYS,
    read_compared,
    read_openai,
    read_shp,
)
from metaalign.data.formats.fields import LABELS
from metaalign.data.formats.messages import CONVERSATIONS
from metaalign.data.formats.numbered import (
    ARENA,
    NUMBERED,
    ONE_HOT,
    PANDALM,
    STRENGTHS,
    WINNERS,
    annotators_of,
    has_turns_as_json,
    read_arena,
    read_helpsteer,
    read_numbered,
    read_pandalm,
)
from metaalign.data.formats.own import OWN_KEYS, read_metaalign
from metaalign.data.formats.prompts import (
    BESIDE,
    PROMPT_KEYS,
    SPOKEN_QUERIES,
    SYSTEM_KEYS,
    read_query,
)
from metaalign.data.formats.rankings import (
    LIST_SCORES,
    LISTS,
    PREDICTIONS,
    read_fine_grained,
    read_metaaligner,
    read_rated,
    read_truthfulqa,
)
from metaalign.data.formats.reply_trees import OASST, left_out_of_tree, read_tree
from metaalign.data.formats.sides import (
    SIDE_KEYS,
    SIDES,
    is_pair,
    pair_ratings,
    read_pair,
)
from metaalign.data.sources.options import SourceOptions
from metaalign.examples import Example, Source

_NEAR = 0.8
"""Similarity of two keys at and above which one may be a misspelling of the other."""

Row = telling.Row
Reader = Callable[[Row, Source, SourceOptions], list[Example]]


@dataclass(frozen=True)
class Shape:
    """A row's shape.

    Attributes:
        keys: Keys that the row must have.
        read: Reads one row. None if a whole file must be read at once.
        more: Optional keys that are read.
        reads: Further keys that are read of a given row.
        matches: A further condition on the row.
        needs: For the error: of each group of keys the row needs one.
        note: For the error: a note after the needed keys.
        may_be_prompt: Whether a row may be a prompt without an answer.
        notices: Notices about a row that was read.
    """

    keys: frozenset[str]
    read: Reader | None
    more: frozenset[str]
    reads: Callable[[Row], Iterable[str]]
    matches: Callable[[Row], bool]
    needs: tuple[Sequence[str], ...]
    note: str
    may_be_prompt: bool
    notices: Callable[[Row], Iterable[str]] | None

    @cached_property
    def known(self) -> frozenset[str]:
        """Keys that are read of every row."""
        return self.keys | self.more


def _shape(
    *keys: str,
    read: Reader | None,
    more: Iterable[str] = (),
    reads: Callable[[Row], Iterable[str]] | None = None,
    matches: Callable[[Row], bool] | None = None,
    needs: Sequence[Sequence[str]] = (),
    note: str = "",
    may_be_prompt: bool = False,
    notices: Callable[[Row], Iterable[str]] | None = None,
) -> Shape:
    return Shape(
        frozenset(keys),
        read,
        frozenset(more),
        reads or (lambda _: ()),
        matches or (lambda _: True),
        (*([key] for key in sorted(keys)), *needs),
        note,
        may_be_prompt,
        notices,
    )


_PROMPT = (*PROMPT_KEYS, *SYSTEM_KEYS, *BESIDE)
_BESIDE_TALK = (*SYSTEM_KEYS, *SIDE_KEYS, *REJECTED, LOSS_MASK)


def _keys_of(pairs: Iterable[tuple[str, str]]) -> list[str]:
    return [key for keys in pairs for key in keys]


def _names(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """Pairs of keys as text for an error."""
    return ["+".join(keys) for keys in pairs]


def _told_of_json(row: Row) -> Sequence[str]:
    keys = ("prompt", *ARENA[1])
    return [f"{key}: JSON text is read as turns" for key in keys if has_turns_as_json(row)]


def _pair_or_label(row: Row) -> Sequence[str]:
    return pair_ratings(row) if is_pair(row) else LABELS


SHAPES: dict[str, Shape] = {
    "metaalign": _shape("turns", "responses", read=read_metaalign, more=OWN_KEYS),
    "fine_grained": _shape(
        "question",
        "preference",
        *PREDICTIONS,
        read=read_fine_grained,
        more=("passages", "feedback"),
    ),
    "truthfulqa": _shape(
        "Question",
        "Best Answer",
        "Incorrect Answers",
        read=read_truthfulqa,
        more=["Correct Answers"],
    ),
    "metaaligner": _shape("query", "goldens", "generated_text", read=read_metaaligner),
    "compared": _shape(
        *COMPARED,
        read=read_compared,
        more=(*_PROMPT, "labels", *WINNER_KEYS),
        needs=[PROMPT_KEYS, ("labels", *WINNER_KEYS)],
    ),
    "shp": _shape("history", *SHP, "labels", read=read_shp),
    "openai": _shape(*OPENAI, read=read_openai),
    "oasst": _shape(
        *OASST,
        read=read_tree,
        more=["tree_state", "origin"],
        matches=telling.is_tree,
        may_be_prompt=True,
        notices=left_out_of_tree,
    ),
    "helpsteer": _shape(
        read=read_helpsteer,
        more=(*_PROMPT, *STRENGTHS, *_keys_of(STRENGTHS.values()), "preference_statement"),
        matches=telling.is_helpsteer,
        needs=[("prompt", "context"), _names(STRENGTHS.values()), [*STRENGTHS]],
    ),
    "arena": _shape(
        read=read_arena,
        more=(*_PROMPT, *_keys_of(ARENA), "winner", *ONE_HOT),
        matches=telling.is_arena,
        notices=_told_of_json,
        needs=[_names(ARENA), ("winner", "+".join(ONE_HOT))],
    ),
    "pandalm": _shape(
        *PANDALM,
        read=read_pandalm,
        more=_PROMPT,
        reads=annotators_of,
        matches=lambda row: bool(annotators_of(row)),
        needs=[PROMPT_KEYS, ["annotator1"]],
    ),
    "numbered": _shape(
        read=read_numbered,
        more=(*_PROMPT, *_keys_of(NUMBERED), *WINNERS),
        matches=telling.is_numbered,
        needs=[PROMPT_KEYS, _names(NUMBERED), WINNERS],
    ),
    "sharegpt": _shape(
        "conversations",
        read=read_sharegpt,
        more=_BESIDE_TALK,
        reads=_pair_or_label,
        may_be_prompt=True,
    ),
    "hh_rlhf": _shape(
        *SIDES, read=read_pair, more=_PROMPT, reads=pair_ratings, matches=telling.is_hh_rlhf
    ),
    "pairs": _shape(
        read=read_pair,
        more=(*SIDE_KEYS, *_PROMPT),
        reads=pair_ratings,
        matches=telling.is_pair,
        needs=[("chosen",), ("rejected",), PROMPT_KEYS],
    ),
    "messages": _shape(
        read=read_chat,
        more=(*CONVERSATIONS, *_BESIDE_TALK),
        reads=_pair_or_label,
        matches=telling.is_conversation,
        needs=[CONVERSATIONS],
        note=" (a list)",
        may_be_prompt=True,
    ),
    "rated": _shape(
        read=read_rated,
        more=(*_PROMPT, *LISTS, *LIST_SCORES),
        matches=telling.is_rated,
        needs=[PROMPT_KEYS, LISTS],
        note=" (a list of objects, or of texts with scores or ranks beside it)",
    ),
    "alpaca": _shape(
        "instruction",
        "output",
        read=read_answer,
        more=(*_PROMPT, *LABELS, *WORSE),
        reads=helpsteer_scores,
    ),
    "completion": _shape(
        read=read_answer,
        more=(*_PROMPT, *ANSWER_KEYS, *LABELS, *WORSE),
        reads=helpsteer_scores,
        matches=telling.is_answered,
        needs=[PROMPT_KEYS, ANSWER_KEYS],
    ),
    "text": _shape(
        "text",
        read=read_text,
        more=[*SYSTEM_KEYS, *LABELS],
        matches=telling.is_templated,
        note=" (a conversation under the markers of a chat template)",
        may_be_prompt=True,
    ),
    "personas": _shape("statement", "answer_matching_behavior", read=None),
    "prompts": _shape(
        read=read_query,
        more=(*_PROMPT, *SPOKEN_QUERIES),
        matches=telling.is_query,
        needs=[("prompt", "turns")],
        may_be_prompt=True,
    ),
}
"""The formats, the more specific shapes first."""


def shape_of(row: Row) -> str | None:
    """The first format in SHAPES that a row has, or None."""
    given = {key for key, value in row.items() if value is not None}
    return next(
        (name for name, shape in SHAPES.items() if shape.keys <= given and shape.matches(row)), None
    )


def nearest_shape(keys: Sequence[str]) -> str:
    """What the format nearest to these keys needs; if none is near, what each format needs."""
    near = {name: _nearness(shape, keys) for name, shape in SHAPES.items()}
    nearest = max(near, key=lambda name: near[name])
    if near[nearest][0] > 0:
        return f"the nearest known format, {nearest}, needs {_needed(SHAPES[nearest])}"
    return "known are " + "; ".join(f"{name}: {_needed(each)}" for name, each in SHAPES.items())


def _nearness(shape: Shape, keys: Sequence[str]) -> tuple[float, float]:
    """The share of a shape's needs that these keys nearly match, and the sum of similarities."""
    likeness = [_likeness(either, keys) for either in shape.needs]
    found = [each for each in likeness if each >= _NEAR]
    return len(found) / len(likeness), sum(found)


def _likeness(either: Sequence[str], keys: Sequence[str]) -> float:
    pairs = ((wanted, key) for wanted in either for key in keys)
    return max((difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs), default=0)


def _needed(shape: Shape) -> str:
    return ", ".join("/".join(either) for either in shape.needs) + shape.note
