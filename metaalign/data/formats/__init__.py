"""Converts the rows of all supported formats to examples. Bad rows are kept with their reasons.

Imports neither a tokenizer nor Ray. The other modules of this room show a row of each format.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice

from metaalign.data.formats.chats import ANSWER_KEYS, REJECTED, WORSE
from metaalign.data.formats.fields import is_filled, number, text
from metaalign.data.formats.json_texts import opened
from metaalign.data.formats.markers import marked_by, may_hold_markers
from metaalign.data.formats.messages import CONVERSATIONS, unread_keys
from metaalign.data.formats.numbered import ARENA
from metaalign.data.formats.own import read_metaalign
from metaalign.data.formats.personas import read_personas
from metaalign.data.formats.prompts import BESIDE, PROMPT_KEYS
from metaalign.data.formats.proposal import propose_columns
from metaalign.data.formats.rankings import LIST_SCORES, LISTS
from metaalign.data.formats.reply_trees import read_tree
from metaalign.data.formats.shapes import SHAPES, Row, Shape, nearest_shape, shape_of
from metaalign.data.formats.sides import SIDE_KEYS
from metaalign.data.sources.options import SourceOptions, conversation_key
from metaalign.data.sources.outcome import FileRead, printable
from metaalign.data.sources.records import Record
from metaalign.errors import DataError, RowError
from metaalign.examples import HELD_OUT, TRAIN, Example, Source

__all__ = ["SHAPES", "detect_format", "read_rows"]

_ROWS_LOOKED_AT = 100
_TALKS = (*CONVERSATIONS, "conversations")
_SPOKEN = frozenset({*_TALKS, *SIDE_KEYS, *REJECTED, *WORSE, *PROMPT_KEYS, *ANSWER_KEYS})
"""Keys that may hold messages."""

_LISTS = frozenset({*_TALKS, "turns", "history", *LISTS, *LIST_SCORES, *ARENA[0]})
"""Keys that may hold a list as JSON text even if it has no messages."""

_ASKED = frozenset({*PROMPT_KEYS, *BESIDE})
"""Keys of what the user says."""

_FACTORS = ("weight", "margin")
_NOT_TEXT = ("images", "videos", "audios", "tools", "functions")
_BESIDE = frozenset({"user_info", *_FACTORS, *_NOT_TEXT})
"""Keys that matter in every format. They are read, or the row is refused."""


def detect_format(records: Iterable[Record], name: str) -> str:
    """The format of the first row that has one. `prompts` only if no row has another format.

    Args:
        name: Name of the file, for the error.

    Raises:
        DataError: no row has a known format. The message names its keys and the nearest format.
    """
    first: Row | None = None
    problem = ""
    is_prompts = False
    for record in islice(records, _ROWS_LOOKED_AT):
        try:
            row = opened(record.object(), _LISTS, asked=_ASKED)
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
    raise DataError(f"{name}: {_unknown_format(first, problem)}")


def _unknown_format(row: Row | None, problem: str) -> str:
    """The error message for a file whose first row is `row`, or has this problem."""
    if row is not None:
        keys = sorted(row)
        listed = _rows_inside(row)
        if listed is not None:
            return (
                f"unknown format: its rows have the keys {printable(', '.join(keys))}; where the "
                f"file is one JSON object, and its rows are the list under {listed!r}, set "
                f"field={listed} in this source"
            )
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


def _rows_inside(row: Row) -> str | None:
    """The key of a list whose objects are rows of a known format."""
    lists = ((key, each) for key, each in row.items() if isinstance(each, list) and each)
    found = (key for key, each in lists if isinstance(each[0], dict) and shape_of(each[0]))
    return next(map(printable, found), None)


def read_rows(
    records: Iterable[Record], name: str, format: str, options: SourceOptions
) -> FileRead:
    """Read every row of a file as examples or as a bad row.

    Args:
        name: Name of the file in errors and in the sources of examples.
        format: A key of SHAPES, such as `detect_format` returns.

    Raises:
        DataError: the file itself cannot be read.
    """
    shape, result = SHAPES[format], FileRead(name)
    if shape.read is None:
        return read_personas(records, name, options)
    for record in records:
        result.rows += 1
        try:
            row = raw = record.object()
            if not record.text or _may_hold_list(record.text):
                row = opened(raw, _LISTS, asked=_ASKED)
            examples = shape.read(row, Source(name, record.row), options)
            if not _BESIDE.isdisjoint(row) and shape.read is not read_metaalign:
                examples = [_beside(each, row) for each in examples]
            examples = [_complete(each, options, shape) for each in options.ordered(examples)]
        except RowError as error:
            result.refuse(record, str(error))
            continue
        result.used += 1
        result.examples += examples
        result.ignored.update(map(printable, record.unread))
        _ignore(row, shape, result, examples)
        if row is not raw:
            read = (key for key in row if row[key] is not raw[key])
            result.notices.update(printable(f"{key}: JSON text is read as a list") for key in read)
        if not record.text or may_hold_markers(record.text):
            result.notices.update(_marker_notices(row, examples))
    return result


def _may_hold_list(text: str) -> bool:
    """Whether a line may contain a list or a message as JSON text.

    A line of CSV has it with or without quotes, a JSON object only in quotes.
    """
    if not text.startswith("{"):
        return "[" in text or "{" in text
    return ("[" in text and '"[' in text) or (text.find("{", 1) > 0 and '"{' in text)


def _beside(example: Example, row: Row) -> Example:
    """Add the User Info, weight and margin of a row, which may occur in every format."""
    for key in _NOT_TEXT:
        if is_filled(row.get(key)) and row[key] != "[]":
            raise RowError(f"{key}: only text can be trained on")
    weight = example.weight * number(row, "weight", 1.0)
    has_margin = len(example.responses) > 1 and row.get("margin") is not None
    margin = number(row, "margin") if has_margin else 0.0
    user_info = text(row, "user_info", "") or example.user_info
    return replace(example, user_info=user_info, weight=weight, margin=margin)


def _marker_notices(row: Row, examples: Sequence[Example]) -> list[str]:
    """Notices about texts with the markers of another chat template."""
    texts: set[str] = set()
    for example in examples:
        texts.update((example.system_info, example.user_info))
        texts.update(text for turn in example.turns for text in (turn.text, turn.user_info))
        texts.update(response.text for response in example.responses)
    left = marked_by(texts)
    given = marked_by(value for value in row.values() if isinstance(value, str))
    read = [f"the markers of {name} are read as turns" for name in given if name not in left]
    return read + [f"the markers of {name} stay in the text, and are trained" for name in left]


@functools.cache
def _spoken_in(keys: frozenset[str]) -> frozenset[str]:
    return keys & _SPOKEN


def _ignore(row: Row, shape: Shape, result: FileRead, examples: Sequence[Example]) -> None:
    """Count the keys of a used row that were not read, and add its notices."""
    more = tuple(shape.reads(row))
    if not _BESIDE.isdisjoint(row):
        paired = any(len(example.responses) > 1 for example in examples)
        more += ("user_info", *(_FACTORS if paired else _FACTORS[:1]))
    result.ignore(row, shape.known.union(more) if more else shape.known)
    spoken = _spoken_in(shape.known)
    if spoken and shape.read is not read_tree:
        result.ignored.update(map(printable, unread_keys(row, spoken)))
    if shape.notices is not None:
        result.notices.update(shape.notices(row))


def _complete(example: Example, options: SourceOptions, shape: Shape) -> Example:
    """Validate an example and fill in the source's defaults, a conversation and a split."""
    example.validate(answered=not shape.may_be_prompt or bool(example.responses))
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
