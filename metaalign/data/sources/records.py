"""Files to raw records: JSON lines, one JSON array, CSV, TSV or Parquet, told by their content.

Knows no shape of record; `formats` does. A file that is damaged as a whole is a DataError; what is
wrong with one row is told by its record. Nothing holds more of a file than its current record, or,
of Parquet, its current row group.
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
    """One source row as it stands in the file.

    Attributes:
        row: Its first line in a file of lines, its place in an array or a table; from 0.
        value: What it parsed to, or None where it did not.
        problem: Why it did not parse, or an empty string.
        text: The line as it stands; empty where the file has none.
        unread: What is told of columns that were left out when the others were renamed.
    """

    row: int
    value: Any
    problem: str = ""
    text: str = ""
    unread: tuple[str, ...] = ()

    def object(self) -> Mapping[str, Any]:
        """The record as keys and values.

        Raises:
            RowError: it is none.
        """
        if self.problem:
            raise RowError(self.problem)
        if isinstance(self.value, RepeatedKey):
            raise RowError(repr(self.value))
        if not isinstance(self.value, dict):
            raise RowError(f"expected a JSON object, got {type(self.value).__name__}")
        opened = self.text.count("[") + self.text.count("{")  # no walk where so few cannot be deep
        if not 0 < opened <= _DEEPEST and _is_deeper(self.value, _DEEPEST):
            raise RowError(f"nested deeper than {_DEEPEST} lists and objects")
        return self.value


@dataclass(frozen=True, repr=False)
class RepeatedKey:
    """What a JSON object becomes that has a key twice: which of the values counts is a guess."""

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
        start: Of the lines, in bytes; in Parquet, the first row group.
        stop: Where the next range begins.
        row: The row that its first record has in the file.
    """

    start: int
    stop: int
    row: int


def read_records(
    file: Folder, span: Span | None = None, *, field: str | None = None
) -> Iterator[Record]:
    """Every record of a file, or of a range that `split_file` or `scan_lines` gave.

    Blank lines are none; a row that does not parse has a problem. Invalid UTF-8 comes through as
    lone surrogates, which `Example.validate` refuses row by row.

    Args:
        field: The key under which a file that is one JSON object has its list of rows.

    Raises:
        DataError: the file cannot be read to its end, or is of none of these kinds.
        StorageError: object storage could not be asked.
    """
    with opened(file) as stream:
        reader = reader_of(stream, file, field)
        yield from reader(stream, file) if span is None else reader(stream, file, span)


def check_file(file: Folder, *, field: str | None = None) -> None:
    """Read what may be damaged as a whole: gzip to its end, an array, the footer of Parquet.

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
    """The reader of the file's kind; the stream is at its beginning again, after any mark.

    Raises:
        DataError: it is of no kind that can be read.
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
    """Say how a file can be read that is one JSON object over several lines."""
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
    """Each line with its end, as text; of the first `size` bytes."""
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
    """NaN is what pandas writes for a missing value, so it is null; infinity stays what it is."""
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
    try:
        found = pq.ParquetFile(stream, buffer_size=CHUNK_BYTES, pre_buffer=False)
        columns = found.schema_arrow.names
    except (pa.ArrowException, OSError, ValueError) as error:  # or a column's name is not UTF-8
        refuse_file(file, error)
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise DataError(f"{file}: the file names the columns {', '.join(map(repr, twice))} twice")
    return found


def parquet_records(stream: Any, file: Folder, span: Span | None = None) -> Iterator[Record]:
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
    """The records of a table's rows, of which `first` is the first one's number."""
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
