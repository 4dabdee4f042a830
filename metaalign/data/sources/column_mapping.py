"""Renames the columns of any table to the keys that formats read, by a source's `columns`.

    columns      {"prompt": "data.question", "chosen": "answers.0.text", "rejected": "worse"}
    source row   {"data": {"question": "Hi"}, "answers": [{"text": "Hello!"}], "worse": "Go.",
                  "id": 7}
    mapped row   {"prompt": "Hi", "chosen": "Hello!", "rejected": "Go."}, and "id" is unread

Independent of the formats.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from metaalign.config.columns import ColumnsConfig
from metaalign.data.sources.records import Record
from metaalign.errors import DataError, RowError, did_you_mean

_KEYS = {"system_info": "system"}
"""Names of `columns` whose key in the formats is another word."""

_ABSENT = object()
_MOST_NAMES = 100


def mapped_records(records: Iterable[Record], columns: ColumnsConfig | None) -> Iterator[Record]:
    """Rename each record's columns. A record that is no object stays unchanged."""
    if columns is None:
        yield from records
        return
    plan = _plan(columns)
    for record in records:
        try:
            row = record.object()
        except RowError:
            yield record
        else:
            yield replace(record, value=_mapped(row, plan), unread=_unread(row, plan))


def map_row(row: Mapping[str, Any], columns: ColumnsConfig) -> dict[str, Any]:
    """Rename a row's columns. A name whose column the row lacks is left out."""
    return _mapped(row, _plan(columns))


class _Plan(NamedTuple):
    named: Mapping[str, str | tuple[str, ...]]
    taken: frozenset[str]
    """Columns of a row that are read under another name."""


def _plan(columns: ColumnsConfig) -> _Plan:
    every = [column for _, column in columns.each()]
    return _Plan(columns.named(), frozenset({*every, *(each.partition(".")[0] for each in every)}))


def _mapped(row: Mapping[str, Any], plan: _Plan) -> dict[str, Any]:
    named, taken = plan
    mapped = {
        name: row[name]
        for name in ColumnsConfig.model_fields
        if name in row and name not in named and name not in taken
    }
    for name, column in named.items():
        value = _value(row, column) if isinstance(column, str) else _values(row, column)
        if value is not _ABSENT:
            mapped[name] = value
    _drop_absent(mapped, named)
    return {_KEYS.get(name, name): value for name, value in mapped.items()}


def _drop_absent(mapped: dict[str, Any], named: Mapping[str, str | tuple[str, ...]]) -> None:
    """Remove answers that the row lacks, and their scores."""
    if not isinstance(named.get("responses"), tuple):
        return
    there = [answer is not None for answer in mapped["responses"]]
    for name in ("responses", "scores"):
        values = mapped.get(name)
        if isinstance(values, list) and len(values) == len(there):
            mapped[name] = [each for each, kept in zip(values, there, strict=True) if kept]


def _values(row: Mapping[str, Any], columns: Sequence[str]) -> list[Any]:
    found = (_value(row, column) for column in columns)
    return [None if value is _ABSENT else value for value in found]


def _value(row: Mapping[str, Any], column: str) -> Any:
    """The value of a column with this name, or at the path that the name's dots describe."""
    if column in row:
        return row[column]
    value: Any = row
    for step in column.split("."):
        if isinstance(value, dict) and step in value:
            value = value[step]
        elif isinstance(value, list | tuple) and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        else:
            return _ABSENT
    return value


def _unread(row: Mapping[str, Any], plan: _Plan) -> tuple[str, ...]:
    """Names, for the ledger, of the columns that have a value and are not read."""
    named, taken = plan
    return tuple(
        f"{key} (columns.{key} is {named[key]!r})" if key in named else key
        for key, value in row.items()
        if value is not None
        and key not in taken
        and (key in named or key not in ColumnsConfig.model_fields)
    )


def check_columns(records: Iterable[Record], name: str, columns: ColumnsConfig) -> None:
    """Check that some row has each column of `columns`. Stops reading once all were found.

    Args:
        name: Name of the file, for the error.

    Raises:
        DataError: no row has a column. The message names these, and the columns that exist.
    """
    missing = {column: name for name, column in columns.each()}
    known: dict[str, None] = {}
    for record in records:
        try:
            row = record.object()
        except RowError:
            continue
        missing = {each: what for each, what in missing.items() if _value(row, each) is _ABSENT}
        if not missing:
            return
        if len(known) < _MOST_NAMES:
            known.update(dict.fromkeys(column_names(row)))
    if not known:
        return  # no row is an object with keys; detecting the format raises an error for that
    problems = (
        f"no row has the column {column!r} that columns.{what} names"
        f"{did_you_mean(column, [*known])}"
        for column, what in missing.items()
    )
    raise DataError(f"{name}: {'; '.join(problems)}; its columns are {', '.join(known)}")


def column_names(row: Mapping[str, Any]) -> Iterator[str]:
    """All names that `columns` may use for a row's values, including those in objects and lists."""
    for key, value in row.items():
        yield key
        yield from (f"{key}.{within}" for within in _names_within(value))


def _names_within(value: Any, levels: int = 2) -> Iterator[str]:
    steps: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        steps = value.items()
    elif isinstance(value, list) and value and levels:
        steps = enumerate(value[:2])
    for step, held in steps if levels else ():
        yield f"{step}"
        yield from (f"{step}.{within}" for within in _names_within(held, levels - 1))
