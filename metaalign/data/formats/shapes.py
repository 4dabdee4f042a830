"""Which shape a row has, told by its keys, and where two share keys by what stands under them.

A null counts as no key, since Parquet fills what a row lacks with nulls. The modules that read a
shape show a row of it.
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
"""Likeness of two keys from which one may be meant by the other."""

Row = telling.Row
Reader = Callable[[Row, Source, SourceOptions], list[Example]]


@dataclass(frozen=True)
class Shape:
    """A row's shape.

    Attributes:
        keys: Those that it must have.
        read: None where rows mean something together only, and a whole file is read at once.
        more: Others that are read where they are there.
        reads: Others that are read of a row.
        tells: What else tells it.
        needs: Of each of these it has one key, as an error says it.
        note: What an error says beside that.
        asks: Whether a row may be a prompt that nobody has answered.
        tells_more: What else is told of a row that was read.
    """

    keys: frozenset[str]
    read: Reader | None
    more: frozenset[str]
    reads: Callable[[Row], Iterable[str]]
    tells: Callable[[Row], bool]
    needs: tuple[Sequence[str], ...]
    note: str
    asks: bool
    tells_more: Callable[[Row], Iterable[str]] | None

    @cached_property
    def known(self) -> frozenset[str]:
        """What is read of every row."""
        return self.keys | self.more


def _shape(
    *keys: str,
    read: Reader | None,
    more: Iterable[str] = (),
    reads: Callable[[Row], Iterable[str]] | None = None,
    tells: Callable[[Row], bool] | None = None,
    needs: Sequence[Sequence[str]] = (),
    note: str = "",
    asks: bool = False,
    tells_more: Callable[[Row], Iterable[str]] | None = None,
) -> Shape:
    return Shape(
        frozenset(keys),
        read,
        frozenset(more),
        reads or (lambda _: ()),
        tells or (lambda _: True),
        (*([key] for key in sorted(keys)), *needs),
        note,
        asks,
        tells_more,
    )


_PROMPT = (*PROMPT_KEYS, *SYSTEM_KEYS, *BESIDE)
_BESIDE_TALK = (*SYSTEM_KEYS, *SIDE_KEYS, *REJECTED, LOSS_MASK)


def _keys_of(pairs: Iterable[tuple[str, str]]) -> list[str]:
    return [key for keys in pairs for key in keys]


def _names(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """Two answers' keys, as an error says them."""
    return ["+".join(keys) for keys in pairs]


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
        tells=telling.is_tree,
        asks=True,
        tells_more=left_out_of_tree,
    ),
    "helpsteer": _shape(
        read=read_helpsteer,
        more=(*_PROMPT, *STRENGTHS, *_keys_of(STRENGTHS.values()), "preference_statement"),
        tells=telling.is_helpsteer,
        needs=[("prompt", "context"), _names(STRENGTHS.values()), [*STRENGTHS]],
    ),
    "arena": _shape(
        read=read_arena,
        more=(*_PROMPT, *_keys_of(ARENA), "winner", *ONE_HOT),
        tells=telling.is_arena,
        needs=[_names(ARENA), ("winner", "+".join(ONE_HOT))],
    ),
    "pandalm": _shape(
        *PANDALM,
        read=read_pandalm,
        more=_PROMPT,
        reads=annotators_of,
        tells=lambda row: bool(annotators_of(row)),
        needs=[PROMPT_KEYS, ["annotator1"]],
    ),
    "numbered": _shape(
        read=read_numbered,
        more=(*_PROMPT, *_keys_of(NUMBERED), *WINNERS),
        tells=telling.is_numbered,
        needs=[PROMPT_KEYS, _names(NUMBERED), WINNERS],
    ),
    "sharegpt": _shape(
        "conversations",
        read=read_sharegpt,
        more=_BESIDE_TALK,
        reads=_pair_or_label,
        asks=True,
    ),
    "hh_rlhf": _shape(
        *SIDES, read=read_pair, more=_PROMPT, reads=pair_ratings, tells=telling.is_hh_rlhf
    ),
    "pairs": _shape(
        read=read_pair,
        more=(*SIDE_KEYS, *_PROMPT),
        reads=pair_ratings,
        tells=telling.is_pair,
        needs=[("chosen",), ("rejected",), PROMPT_KEYS],
    ),
    "messages": _shape(
        read=read_chat,
        more=(*CONVERSATIONS, *_BESIDE_TALK),
        reads=_pair_or_label,
        tells=telling.is_conversation,
        needs=[CONVERSATIONS],
        note=" (a list)",
        asks=True,
    ),
    "rated": _shape(
        read=read_rated,
        more=(*_PROMPT, *LISTS, *LIST_SCORES),
        tells=telling.is_rated,
        needs=[PROMPT_KEYS, LISTS],
        note=" (a list of objects, or of texts with scores or ranks beside it)",
    ),
    "alpaca": _shape(
        "instruction",
        "output",
        read=read_answer,
        more=(*_PROMPT, *LABELS, REJECTED[0]),
        reads=helpsteer_scores,
    ),
    "completion": _shape(
        read=read_answer,
        more=(*_PROMPT, *ANSWER_KEYS, *LABELS, REJECTED[0]),
        reads=helpsteer_scores,
        tells=telling.is_answered,
        needs=[PROMPT_KEYS, ANSWER_KEYS],
    ),
    "text": _shape(
        "text",
        read=read_text,
        more=[*SYSTEM_KEYS, *LABELS],
        tells=telling.is_templated,
        note=" (a conversation under the markers of a chat template)",
        asks=True,
    ),
    "personas": _shape("statement", "answer_matching_behavior", read=None),
    "prompts": _shape(
        read=read_query,
        more=(*_PROMPT, *SPOKEN_QUERIES),
        tells=telling.is_query,
        needs=[("prompt", "turns")],
        asks=True,
    ),
}
"""The formats, the more telling shapes first."""


def shape_of(row: Row) -> str | None:
    """The format of a row, or None."""
    given = {key for key, value in row.items() if value is not None}
    return next(
        (name for name, shape in SHAPES.items() if shape.keys <= given and shape.tells(row)), None
    )


def nearest_shape(keys: Sequence[str]) -> str:
    """What the format needs that has most of these keys, or nearly; else what each one needs."""
    near = {name: _nearness(shape, keys) for name, shape in SHAPES.items()}
    nearest = max(near, key=lambda name: near[name])
    if near[nearest][0] > 0:
        return f"the nearest known format, {nearest}, needs {_needed(SHAPES[nearest])}"
    return "known are " + "; ".join(f"{name}: {_needed(each)}" for name, each in SHAPES.items())


def _nearness(shape: Shape, keys: Sequence[str]) -> tuple[float, float]:
    """The share of what a shape needs that these keys come near to, and how near they come."""
    likeness = [_likeness(either, keys) for either in shape.needs]
    found = [each for each in likeness if each >= _NEAR]
    return len(found) / len(likeness), sum(found)


def _likeness(either: Sequence[str], keys: Sequence[str]) -> float:
    pairs = ((wanted, key) for wanted in either for key in keys)
    return max((difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs), default=0)


def _needed(shape: Shape) -> str:
    return ", ".join("/".join(either) for either in shape.needs) + shape.note
