"""Every file shape that users bring -> Example. A bad row is kept with its reason, never dropped.

Knows no tokenizer and no Ray. The other modules of this room show a row of each shape.
"""

import functools
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice

from metaalign.data.formats.chats import ANSWER_KEYS, read_query
from metaalign.data.formats.fields import text
from metaalign.data.formats.messages import unread_keys
from metaalign.data.formats.own import read_metaalign
from metaalign.data.formats.personas import read_personas
from metaalign.data.formats.prompts import PROMPT_KEYS
from metaalign.data.formats.proposal import propose_columns
from metaalign.data.formats.shapes import SHAPES, Row, Shape, nearest_shape, shape_of
from metaalign.data.sources.options import SourceOptions, conversation_key
from metaalign.data.sources.outcome import FileRead, printable
from metaalign.data.sources.records import Record
from metaalign.errors import DataError, RowError
from metaalign.examples import HELD_OUT, TRAIN, Example, Source

__all__ = ["SHAPES", "detect_format", "read_rows"]

_ROWS_LOOKED_AT = 100
_SPOKEN = frozenset(
    {"messages", "conversation", "conversations", "chosen", "rejected", *PROMPT_KEYS, *ANSWER_KEYS}
)
"""Where messages may stand."""


def detect_format(records: Iterable[Record], name: str) -> str:
    """The format that the first telling row has; bare prompts only where no other row tells more.

    Args:
        name: Of the file, for the error.

    Raises:
        DataError: none does; names the keys found and the nearest known shape.
    """
    first: Row | None = None
    problem = ""
    is_prompts = False
    for record in islice(records, _ROWS_LOOKED_AT):
        try:
            row = record.object()
        except RowError as error:
            problem = problem or f"row {record.row}: {error}"
            continue
        found = shape_of(row)
        if found not in (None, "prompts"):
            return found
        is_prompts |= found == "prompts"
        first = row if first is None else first
    if is_prompts:
        return "prompts"
    raise DataError(f"{name}: {_untold(first, problem)}")


def _untold(row: Row | None, problem: str) -> str:
    """Why rows like this one, or with this problem, tell no format."""
    if row is not None:
        keys = sorted(row)
        proposed = propose_columns(row) or "columns: {prompt: NAME, chosen: NAME, rejected: NAME}"
        return (
            f"unknown format: its rows have the keys {printable(', '.join(keys))}; "
            f"{nearest_shape(keys)}. Rename the keys, or give the source {proposed}"
        )
    if not problem:
        return "the file has no rows"
    return printable(
        f"none of its first rows is an object with keys; {problem}; expected rows in one of the "
        f"formats {', '.join(SHAPES)}"
    )


def read_rows(
    records: Iterable[Record], name: str, format: str, options: SourceOptions
) -> FileRead:
    """Every row of a file as examples or as bad rows.

    Args:
        name: Of the file, as every later error shows it.
        format: A key of SHAPES; `detect_format` finds it.

    Raises:
        DataError: the file itself cannot be read.
    """
    shape, result = SHAPES[format], FileRead(name)
    if shape.read is None:
        return read_personas(records, name, options)
    for record in records:
        result.rows += 1
        try:
            row = record.object()
            examples = options.ordered(shape.read(row, Source(name, record.row), options))
            answered = shape.read is not read_query
            told = text(row, "user_info", "") if shape.read is not read_metaalign else ""
            examples = [replace(each, user_info=told) for each in examples] if told else examples
            result.examples += [_complete(each, options, answered=answered) for each in examples]
        except RowError as error:
            result.refuse(record, str(error))
        else:
            result.used += 1
            result.ignored.update(map(printable, record.unread))
            _ignore(row, shape, result)
    return result


@functools.cache
def _spoken_in(keys: frozenset[str]) -> frozenset[str]:
    return keys & _SPOKEN


def _ignore(row: Row, shape: Shape, result: FileRead) -> None:
    """Count what was not read of a row that was used."""
    more = (*shape.reads(row), "user_info")
    result.ignore(row, shape.known.union(more) if more else shape.known)
    spoken = _spoken_in(shape.known)
    if spoken:
        result.ignored.update(map(printable, unread_keys(row, spoken)))


def _complete(example: Example, options: SourceOptions, *, answered: bool) -> Example:
    """A valid example with the source's defaults, a conversation and a split."""
    example.validate(answered=answered)
    conversation = example.conversation or conversation_key(example.turns[0].text)
    split = example.tags.get("split") or options.split(conversation)
    if split not in (TRAIN, HELD_OUT):
        raise RowError(f"tags.split must be {TRAIN!r} or {HELD_OUT!r}, got {split!r}")
    return replace(
        example,
        system_info=example.system_info or options.system_info,
        user_info=example.user_info or options.user_info or "",
        conversation=conversation,
        tags={**example.tags, "split": split},
    )
