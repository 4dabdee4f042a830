"""Every file shape that users bring -> Example. A bad row is kept with its reason, never dropped.

A shape is told by the keys of a row, and where two shapes share keys by what stands under them; a
null counts as no key, since Parquet fills what a row lacks with nulls. Knows no tokenizer and no
Ray. The other modules of this room show a row of each shape.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from metaalign.data.formats.chats import (
    ANSWER_KEYS,
    HELPSTEER,
    RATED_PAIRS,
    read_answer,
    read_chat,
    read_pair,
    read_query,
    read_sharegpt,
)
from metaalign.data.formats.own import OWN_KEYS, read_metaalign
from metaalign.data.formats.personas import read_personas
from metaalign.data.formats.prompts import PROMPT_KEYS, SYSTEM_KEYS
from metaalign.data.formats.rankings import (
    LIST_SCORES,
    LISTS,
    PREDICTIONS,
    read_fine_grained,
    read_metaaligner,
    read_rated,
    read_truthfulqa,
)
from metaalign.data.reading import FileRead, Reading, conversation_key, printable
from metaalign.data.records import Record
from metaalign.errors import DataError, RowError
from metaalign.examples import HELD_OUT, TRAIN, Example, Source

Row = Mapping[str, Any]
Reader = Callable[[Row, Source, Reading], list[Example]]

_ROWS_LOOKED_AT = 100


@dataclass(frozen=True)
class Shape:
    """A row's shape.

    Attributes:
        keys: Those that it must have.
        read: None where rows mean something together only, and a whole file is read at once.
        more: Others that are read where they are there.
        tells: What else tells it.
    """

    keys: frozenset[str]
    read: Reader | None
    more: frozenset[str]
    tells: Callable[[Row], bool]


def _shape(
    *keys: str,
    read: Reader | None,
    more: Iterable[str] = (),
    tells: Callable[[Row], bool] | None = None,
) -> Shape:
    return Shape(frozenset(keys), read, frozenset(more), tells or (lambda _: True))


_PROMPT = (*PROMPT_KEYS, *SYSTEM_KEYS, "context", "history")
_LABEL = ("label", "kto_tag")
_SIDES = ("chosen", "rejected", *(key for keys in RATED_PAIRS for key in keys))
_QUERY = frozenset(
    {"prompt", "turns", *SYSTEM_KEYS, "id", "key", "prompt_id", "question_id", "category"}
    | {"reference", "instruction_id_list", "kwargs"}
)
"""Keys that stand beside a prompt which nobody has answered; any other may hold an answer."""


def _has_prompt(row: Row) -> bool:
    return any(row.get(key) is not None for key in PROMPT_KEYS)


def _is_hh_rlhf(row: Row) -> bool:
    return isinstance(row["chosen"], str) and not _has_prompt(row)


def _is_pair(row: Row) -> bool:
    return _has_prompt(row) or isinstance(row["chosen"], list)


def _is_rated(row: Row) -> bool:
    return _has_prompt(row) and any(isinstance(row.get(key), list) for key in LISTS)


def _is_answered(row: Row) -> bool:
    return _has_prompt(row) and any(row.get(key) is not None for key in ANSWER_KEYS)


def _is_query(row: Row) -> bool:
    given = {key for key, value in row.items() if value is not None}
    return given <= _QUERY and ("prompt" in given or "turns" in given)


def _is_conversation(row: Row) -> bool:
    return any(isinstance(row.get(key), list) for key in ("messages", "conversation"))


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
    "sharegpt": _shape("conversations", read=read_sharegpt, more=("system", *_LABEL, *_SIDES)),
    "hh_rlhf": _shape(
        "chosen", "rejected", read=read_pair, more=(*_PROMPT, *_SIDES), tells=_is_hh_rlhf
    ),
    "pairs": _shape("chosen", "rejected", read=read_pair, more=(*_PROMPT, *_SIDES), tells=_is_pair),
    "messages": _shape(
        read=read_chat,
        more=("messages", "conversation", "system", *_LABEL, *_SIDES),
        tells=_is_conversation,
    ),
    "rated": _shape(read=read_rated, more=(*_PROMPT, *LISTS, *LIST_SCORES), tells=_is_rated),
    "alpaca": _shape("instruction", "output", read=read_answer, more=(*_PROMPT, *_LABEL)),
    "completion": _shape(
        read=read_answer, more=(*_PROMPT, *ANSWER_KEYS, *HELPSTEER, *_LABEL), tells=_is_answered
    ),
    "personas": _shape("statement", "answer_matching_behavior", read=None),
    "prompts": _shape(read=read_query, more=(*_PROMPT, "turns"), tells=_is_query),
}
"""The formats, the more telling shapes first."""


def detect_format(records: Iterable[Record], name: str) -> str:
    """The format that the first telling row has.

    Args:
        name: Of the file, for the error.

    Raises:
        DataError: none does; names the keys found and the nearest known shape.
    """
    seen: list[Row] = []
    for record in islice(records, _ROWS_LOOKED_AT):
        if not record.problem and isinstance(record.value, dict):
            seen.append(record.value)
            found = _shape_of(record.value)
            if found:
                return found
    if not seen:
        raise DataError(
            f"{name}: none of its first rows is an object with keys; expected rows in one of the "
            f"formats {', '.join(SHAPES)}"
        )
    raise DataError(
        f"{name}: unknown format: its rows have the keys {_list(seen[0])}; {_nearest(seen[0])}. "
        "Rename the keys, or write rows of the format metaalign"
    )


def read_rows(records: Iterable[Record], name: str, format: str, reading: Reading) -> FileRead:
    """Every row of a file as examples or as bad rows.

    Args:
        name: Of the file, as every later error shows it.
        format: A key of SHAPES; `detect_format` finds it.

    Raises:
        DataError: the file itself cannot be read.
    """
    shape, result = SHAPES[format], FileRead(name)
    if shape.read is None:
        return read_personas(records, name, reading)
    known = shape.keys | shape.more
    for record in records:
        result.rows += 1
        try:
            row = record.object()
            examples = shape.read(row, Source(name, record.row), reading)
            answered = shape.read is not read_query
            result.examples += [_complete(each, reading, answered=answered) for each in examples]
        except RowError as error:
            result.refuse(record, str(error))
        else:
            result.used += 1
            result.ignored.update(
                printable(key)
                for key, value in row.items()
                if value is not None and key not in known
            )
    return result


def _complete(example: Example, reading: Reading, *, answered: bool) -> Example:
    """A valid example with the source's defaults, a conversation and a split."""
    example.validate(answered=answered)
    conversation = example.conversation or conversation_key(example.turns[0].text)
    split = example.tags.get("split") or reading.split(conversation)
    if split not in (TRAIN, HELD_OUT):
        raise RowError(f"tags.split must be {TRAIN!r} or {HELD_OUT!r}, got {split!r}")
    return replace(
        example,
        system_info=example.system_info or reading.system_info,
        user_info=example.user_info or reading.user_info or "",
        conversation=conversation,
        tags={**example.tags, "split": split},
    )


def _shape_of(row: Row) -> str | None:
    given = {key for key, value in row.items() if value is not None}
    return next(
        (name for name, shape in SHAPES.items() if shape.keys <= given and shape.tells(row)), None
    )


def _nearest(keys: Iterable[str]) -> str:
    wanted = {name: shape.keys for name, shape in SHAPES.items() if shape.keys}
    near = {
        name: sum(bool(difflib.get_close_matches(key, keys, n=1)) for key in needed) / len(needed)
        for name, needed in wanted.items()
    }
    nearest = max(near, key=lambda name: near[name])
    if near[nearest] > 0:
        return f"the nearest known format, {nearest}, needs {_list(wanted[nearest])}"
    return "known are " + "; ".join(f"{name}: {_list(keys)}" for name, keys in wanted.items())


def _list(keys: Iterable[str]) -> str:
    return printable(", ".join(sorted(keys)))
