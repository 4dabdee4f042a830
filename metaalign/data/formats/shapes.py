"""Which shape a row has, told by its keys, and where two share keys by what stands under them.

A null counts as no key, since Parquet fills what a row lacks with nulls. The modules that read a
shape show a row of it.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from metaalign.data.formats.chats import (
    ANSWER_KEYS,
    QUERY_KEYS,
    helpsteer_scores,
    is_pair,
    pair_ratings,
    read_answer,
    read_chat,
    read_pair,
    read_query,
    read_sharegpt,
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
from metaalign.data.formats.own import OWN_KEYS, read_metaalign
from metaalign.data.formats.prompts import BESIDE, PROMPT_KEYS, SYSTEM_KEYS
from metaalign.data.formats.rankings import (
    LIST_SCORES,
    LISTS,
    PREDICTIONS,
    read_fine_grained,
    read_metaaligner,
    read_rated,
    read_truthfulqa,
)
from metaalign.data.sources.options import SourceOptions
from metaalign.examples import Example, Source

_NEAR = 0.8
"""Likeness of two keys from which one may be meant by the other."""

Row = Mapping[str, Any]
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
    """

    keys: frozenset[str]
    read: Reader | None
    more: frozenset[str]
    reads: Callable[[Row], Iterable[str]]
    tells: Callable[[Row], bool]
    needs: tuple[Sequence[str], ...]
    note: str

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
) -> Shape:
    return Shape(
        frozenset(keys),
        read,
        frozenset(more),
        reads or (lambda _: ()),
        tells or (lambda _: True),
        (*([key] for key in sorted(keys)), *needs),
        note,
    )


_PROMPT = (*PROMPT_KEYS, *SYSTEM_KEYS, *BESIDE)
_CONVERSATIONS = ("messages", "conversation")
_LABEL = ("label", "kto_tag")
_SIDES = ("chosen", "rejected")


def _has_prompt(row: Row) -> bool:
    return any(row.get(key) is not None for key in PROMPT_KEYS)


def _is_hh_rlhf(row: Row) -> bool:
    return isinstance(row["chosen"], str) and not _has_prompt(row) and not _is_conversation(row)


def _is_pair(row: Row) -> bool:
    return _has_prompt(row) or (isinstance(row["chosen"], list) and not _asks(row))


def _is_rated(row: Row) -> bool:
    answers = [row[key] for key in LISTS if isinstance(row.get(key), list)]
    scored = any(isinstance(row.get(key), list) for key in LIST_SCORES)
    judged = any(scored or any(isinstance(each, dict) for each in some) for some in answers)
    return _has_prompt(row) and judged


def _is_answered(row: Row) -> bool:
    return _has_prompt(row) and any(row.get(key) is not None for key in ANSWER_KEYS)


def _is_query(row: Row) -> bool:
    given = {key for key, value in row.items() if value is not None}
    return given <= QUERY_KEYS and ("prompt" in given or "turns" in given)


def _is_conversation(row: Row) -> bool:
    return any(isinstance(row.get(key), list) for key in _CONVERSATIONS)


def _asks(row: Row) -> bool:
    """Whether it has messages of which the last is the user's."""
    ends = [row[key][-1] for key in _CONVERSATIONS if isinstance(row.get(key), list) and row[key]]
    return any(
        isinstance(end, dict) and "user" in (end.get("role"), end.get("from")) for end in ends
    )


def _pair_or_label(row: Row) -> Sequence[str]:
    return pair_ratings(row) if is_pair(row) else _LABEL


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
    "sharegpt": _shape(
        "conversations",
        read=read_sharegpt,
        more=(*SYSTEM_KEYS, *_SIDES),
        reads=_pair_or_label,
    ),
    "hh_rlhf": _shape(*_SIDES, read=read_pair, more=_PROMPT, reads=pair_ratings, tells=_is_hh_rlhf),
    "pairs": _shape(
        *_SIDES,
        read=read_pair,
        more=_PROMPT,
        reads=pair_ratings,
        tells=_is_pair,
        needs=[PROMPT_KEYS],
    ),
    "messages": _shape(
        read=read_chat,
        more=(*_CONVERSATIONS, *SYSTEM_KEYS, *_SIDES),
        reads=_pair_or_label,
        tells=_is_conversation,
        needs=[_CONVERSATIONS],
        note=" (a list)",
    ),
    "rated": _shape(
        read=read_rated,
        more=(*_PROMPT, *LISTS, *LIST_SCORES),
        tells=_is_rated,
        needs=[PROMPT_KEYS, LISTS],
        note=" (a list of objects, or of texts with scores or ranks beside it)",
    ),
    "alpaca": _shape(
        "instruction",
        "output",
        read=read_answer,
        more=(*_PROMPT, *_LABEL),
        reads=helpsteer_scores,
    ),
    "completion": _shape(
        read=read_answer,
        more=(*_PROMPT, *ANSWER_KEYS, *_LABEL),
        reads=helpsteer_scores,
        tells=_is_answered,
        needs=[PROMPT_KEYS, ANSWER_KEYS],
    ),
    "personas": _shape("statement", "answer_matching_behavior", read=None),
    "prompts": _shape(
        read=read_query,
        more=(*_PROMPT, "turns"),
        tells=_is_query,
        needs=[("prompt", "turns")],
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
