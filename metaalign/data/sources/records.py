"""Reads files as raw records: JSON lines, one JSON array, CSV, TSV or Parquet, by their content.

Independent of the shapes of rows, which `formats` reads. A damaged file raises a DataError; a
problem with one row is kept in its record. Memory holds only the current record of a file, or the
current row group of Parquet.
"""

import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from metaalign.data.sources.arrow_values import plain_rows
from metaalign.data.sources.csv_tables import csv_rows
from metaalign.data.sources.file_kinds import BYTE_ORDER_MARK, HEAD_BYTES, Kind, kind_of
from metaalign.data.sources.json_arrays import array_values, first_list, listed_values
from metaalign.data.sources.opening import UNREADABLE, is_unpacked, opened, read_bytes, refuse_file
from metaalign.errors import DataError, RowError
from metaalign.folders import Folder

CHUNK_BYTES = 1 << 20
_ROWS_AT_ONCE = 1_000
_DEEPEST = 64


@dataclass(frozen=True)
class Record:
    """One source row of a file.

    Attributes:
        row: The row's first line in a file of lines, or its index in an array or table; from 0.
        value: The parsed value; None if the row did not parse.
        problem: Why the row did not parse, or an empty string.
        text: The unparsed line; empty if the file has no lines.
        unread: Columns that are not read, with the reason, after the others were renamed.
    """

    row: int
    value: Any
    problem: str = ""
    text: str = ""
    unread: tuple[str, ...] = ()

    def object(self) -> Mapping[str, Any]:
        """The record as keys and values.

        Raises:
            RowError: the record did not parse, is no object, or is nested too deep.
        """
        if self.problem:
            raise RowError(self.problem)
        if isinstance(self.value, RepeatedKey):
            raise RowError(repr(self.value))
        if not isinstance(self.value, dict):
            raise RowError(f"expected a JSON object, got {type(self.value).__name__}")
        opened = self.text.count("[") + self.text.count("{")  # so few brackets need no walk
        if not 0 < opened <= _DEEPEST and _is_deeper(self.value, _DEEPEST):
            raise RowError(f"nested deeper than {_DEEPEST} lists and objects")
        return self.value


@dataclass(frozen=True, repr=False)
class RepeatedKey:
    """Takes the place of a JSON object with a repeated key, whose meaning is ambiguous."""

    key: str

    def __repr__(self) -> str:
        return f"an object in which the key {self.key!r} stands twice"


def _is_deeper(value: Any, levels: int) -> bool:
    level = [value]
    for _ in range(levels):
        within = [each.values() if isinstance(each, dict) else each for each in level]
        level = [each for values in within for each in values if isinstance(each, dict | list)]
        if not level:
            return False
    return True


@dataclass(frozen=True)
class Span:
    """A range of a file that can be read without the rest of it.

    Attributes:
        start: The first byte of a range of lines, or the first row group of Parquet.
        stop: The start of the next range.
        row: Number of the range's first row in the file.
    """

    start: int
    stop: int
    row: int


def read_records(
    file: Folder, span: Span | None = None, *, field: str | None = None
) -> Iterator[Record]:
    """Every record of a file, or of a range from `split_file` or `scan_lines`.

    Blank lines are skipped. A row that does not parse has a problem. Invalid UTF-8 becomes lone
    surrogates, which `Example.validate` refuses for each row.

    Args:
        field: For a file that is one JSON object, the key of its list of rows.

    Raises:
        DataError: the file cannot be read completely, or is of no known kind.
        StorageError: object storage cannot be read.
    """
    with opened(file) as stream:
        reader = reader_of(stream, file, field)
        yield from reader(stream, file) if span is None else reader(stream, file, span)


def check_file(file: Folder, *, field: str | None = None) -> None:
    """Check a file for damage that affects all of it: in gzip, an array, or the footer of Parquet.

    Raises:
        DataError, StorageError: as `read_records`.
    """
    with opened(file) as stream:
        reader = reader_of(stream, file, field)
        if reader not in (line_records, _csv_records, parquet_records):
            for _ in reader(stream, file):
                pass
        elif reader is parquet_records:
            parquet_file(stream, file)
        while is_unpacked(stream) and read_bytes(stream, file, CHUNK_BYTES):
            pass


def reader_of(stream: Any, file: Folder, field: str | None) -> Callable[..., Iterator[Record]]:
    """The reader for the kind of a file. Moves the stream to its beginning, after any mark.

    Raises:
        DataError: the file is of no known kind.
    """
    head = read_bytes(stream, file, HEAD_BYTES)
    stream.seek(len(BYTE_ORDER_MARK) if head.startswith(BYTE_ORDER_MARK) else 0)
    kind = kind_of(head, str(file))
    if field is None:
        return _READERS[kind]
    if kind not in ("object", "lines"):
        raise DataError(
            f"{file}: field is {field!r}, and the file is no JSON object; leave field out"
        )
    return functools.partial(_listed_records, field=field)


def _refuse_object(stream: Any, file: Folder) -> Iterator[Record]:
    """Raise the error for a file that is a JSON object over several lines, with the remedy."""
    try:
        key = first_list(functools.partial(read_bytes, stream, file), _JSON)
    except (ValueError, RecursionError):
        key = None
    if key is None:
        raise DataError(
            f"{file}: its JSON objects go over several lines; write each on a line of its own, as "
            "`jq -c . FILE` does, or all of them as one JSON array"
        )
    raise DataError(
        f"{file}: the file is one JSON object and not JSON lines; its rows may be the list under "
        f"{key!r}: set field={key} in this source, or save that list alone"
    )


def _lines(stream: Any, file: Folder, size: float = math.inf) -> Iterator[str]:
    """Each line of the next `size` bytes as text, with its line end."""
    while size > 0:
        try:
            line = stream.readline()
        except UNREADABLE as error:
            refuse_file(file, error)
        if not line:
            return
        size -= len(line)
        yield line.decode("utf-8", "surrogateescape")


def line_records(stream: Any, file: Folder, span: Span | None = None) -> Iterator[Record]:
    """The records of a stream of JSON lines, or of a range of it."""
    first, size = 0, math.inf
    if span is not None:
        stream.seek(span.start)
        first, size = span.row, span.stop - span.start
    for row, line in enumerate(_lines(stream, file, size), first):
        text = line.strip()
        if text:
            yield _parse(row, text)


def _parse(row: int, text: str) -> Record:
    try:
        return Record(row, _JSON.decode(text), text=text)
    except (ValueError, RecursionError) as error:
        return Record(row, None, problem=f"not JSON: {error}", text=text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | RepeatedKey:
    value = dict(pairs)
    if len(value) == len(pairs):
        return value
    keys = [key for key, _ in pairs]
    return RepeatedKey(next(key for key in keys if keys.count(key) > 1))


def _constant(name: str) -> float | None:
    """Read NaN as null, since pandas writes NaN for a missing value. Infinity stays a number."""
    return None if name == "NaN" else float(name)


_JSON = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)


def _array_records(stream: Any, file: Folder) -> Iterator[Record]:
    try:
        values = array_values(functools.partial(read_bytes, stream, file), _JSON)
        for row, value in enumerate(values):
            yield Record(row, value)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: the file is not a valid JSON array: {error}") from error


def _listed_records(stream: Any, file: Folder, *, field: str) -> Iterator[Record]:
    try:
        values = listed_values(functools.partial(read_bytes, stream, file), _JSON, field)
        for row, value in enumerate(values):
            yield Record(row, value)
    except LookupError as error:
        raise DataError(f"{file}: {error}; correct the `field` of this source") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: the file is not a valid JSON object: {error}") from error


def _csv_records(stream: Any, file: Folder) -> Iterator[Record]:
    for row in csv_rows(_lines(stream, file), str(file)):
        yield Record(row.line, row.cells, row.problem, row.text)


def parquet_file(stream: Any, file: Folder) -> pq.ParquetFile:
    """Open a Parquet file.

    Raises:
        DataError: the file is damaged, or two columns have one name.
    """
    try:
        found = pq.ParquetFile(stream, buffer_size=CHUNK_BYTES, pre_buffer=False)
        columns = found.schema_arrow.names
    except (
        pa.ArrowException,
        OSError,
        ValueError,
    ) as error:  # a ValueError if a column's name is not UTF-8
        refuse_file(file, error)
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise DataError(f"{file}: the file names the columns {', '.join(map(repr, twice))} twice")
    return found


def parquet_records(stream: Any, file: Folder, span: Span | None = None) -> Iterator[Record]:
    """The records of a Parquet file, or of a range of its row groups."""
    row = 0 if span is None else span.row
    groups = None if span is None else [*range(span.start, span.stop)]
    batches = parquet_file(stream, file).iter_batches(_ROWS_AT_ONCE, groups, use_threads=False)
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError, ValueError) as error:
            refuse_file(file, error)
        if batch is None:
            return
        yield from table_records(row, batch)
        row += batch.num_rows


def table_records(first: int, batch: pa.RecordBatch) -> Iterator[Record]:
    """The records of a table's rows. `first` is the number of the first row."""
    for row, value in enumerate(plain_rows(batch), first):
        if isinstance(value, Exception):
            yield Record(row, None, f"a value cannot be read: {value}", repr(value))
        else:
            yield Record(row, value)


_READERS: dict[Kind, Callable[..., Iterator[Record]]] = {
    "lines": line_records,
    "array": _array_records,
    "csv": _csv_records,
    "parquet": parquet_records,
    "object": _refuse_object,
}
