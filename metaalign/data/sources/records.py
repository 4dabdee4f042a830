"""Files to raw records: JSON lines, one JSON array, CSV, TSV or Parquet, told by their content.

Knows no shape of record; `formats` does. A file that is damaged as a whole is a DataError; what is
wrong with one row is told by its record. Nothing holds more of a file than its current record, or,
of Parquet, its current row group.
"""

import functools
import gzip
import io
import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from metaalign.data.sources.csv_tables import csv_rows, is_header
from metaalign.data.sources.json_arrays import array_values
from metaalign.errors import DataError, MetaAlignError, RowError
from metaalign.folders import Folder, open_to_read

_CHUNK_BYTES = 1 << 20
_HEAD_BYTES = 1 << 16
_LINES_LOOKED_AT = 20
UNREADABLE = (ValueError, OverflowError, pa.ArrowException)
"""What a text that is not UTF-8 and a date of the year 9,000,000 raise."""

_ROWS_AT_ONCE = 1_000
_DEEPEST = 64
_GZIP_MAGIC, _PARQUET_MAGIC = b"\x1f\x8b", b"PAR1"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_OTHER_MAGIC = (b"ARROW1", b"PK\x03\x04", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ", b"Obj\x01")
_WANTED = "expected JSON lines, one JSON array, CSV or Parquet, plain or gzip"


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


def read_records(file: Folder, span: Span | None = None) -> Iterator[Record]:
    """Every record of a file, or of a range that `split_file` gave.

    Blank lines are none; a row that does not parse has a problem. Invalid UTF-8 comes through as
    lone surrogates, which `Example.validate` refuses row by row.

    Raises:
        DataError: the file cannot be read to its end, or is of none of these kinds.
        StorageError: object storage could not be asked.
    """
    with _opened(file) as stream:
        kind = _kind(stream, file)
        yield from kind(stream, file) if span is None else kind(stream, file, span)


def split_file(file: Folder, size: int) -> list[Span | None]:
    """Ranges of about `size` bytes, or [None] where a file can only be read from its beginning.

    Plain local JSON lines are split at lines, which takes one pass over them, and Parquet at row
    groups. The ranges depend on the file alone.

    Raises:
        DataError, StorageError: as `read_records`.
    """
    with _opened(file) as stream:
        kind = _kind(stream, file)
        if kind is _parquet_records:
            return [*_row_groups(_parquet(stream, file), size)] or [None]
        if kind is _line_records and isinstance(file, Path) and not _is_packed(stream):
            return [*_line_spans(stream, file, size)]
    return [None]


def _line_spans(stream: Any, file: Folder, size: int) -> Iterator[Span]:
    start, row = stream.tell(), 0
    while True:
        stop, lines = start, 0
        while stop < start + size:
            chunk = _read(stream, file, min(_CHUNK_BYTES, start + size - stop))
            if not chunk:
                break
            stop, lines = stop + len(chunk), lines + chunk.count(b"\n")
        rest = stream.readline()
        stop, lines = stop + len(rest), lines + rest.endswith(b"\n")
        if stop == start:
            return
        yield Span(start, stop, row)
        start, row = stop, row + lines


def _row_groups(file: pq.ParquetFile, size: int) -> Iterator[Span]:
    start, row, held, rows = 0, 0, 0, 0
    for group in range(file.num_row_groups):
        told = file.metadata.row_group(group)
        held, rows = held + told.total_byte_size, rows + told.num_rows
        if held >= size or group == file.num_row_groups - 1:
            yield Span(start, group + 1, row)
            start, row, held, rows = group + 1, row + rows, 0, 0


def check_file(file: Folder) -> None:
    """Read what may be damaged as a whole: gzip to its end, an array, the footer of Parquet.

    Raises:
        DataError, StorageError: as `read_records`.
    """
    with _opened(file) as stream:
        kind = _kind(stream, file)
        if kind is _array_records:
            for _ in kind(stream, file):
                pass
        elif kind is _parquet_records:
            _parquet(stream, file)
        while _is_packed(stream) and _read(stream, file, _CHUNK_BYTES):
            pass


def _is_packed(stream: Any) -> bool:
    return isinstance(stream, gzip.GzipFile)


@contextmanager
def _opened(file: Folder) -> Iterator[io.BufferedIOBase]:
    """The file's bytes from their beginning, unpacked where they are gzip."""
    try:
        with open_to_read(file) as raw:
            packed = raw.read(2) == _GZIP_MAGIC
            raw.seek(0)
            lines = raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw)
            yield gzip.GzipFile(fileobj=raw) if packed else lines
    except MetaAlignError:
        raise
    except OSError as error:
        raise DataError(f"{file}: the file cannot be read: {error.strerror or error}") from error


def _kind(stream: Any, file: Folder) -> Callable[..., Iterator[Record]]:
    """The reader of the file's kind; the stream is at its beginning again, after any mark."""
    head = _read(stream, file, _HEAD_BYTES)
    stream.seek(len(_BYTE_ORDER_MARK) if head.startswith(_BYTE_ORDER_MARK) else 0)
    begun = head.removeprefix(_BYTE_ORDER_MARK).lstrip()
    if not begun:
        raise DataError(f"{file}: the file is empty; {_WANTED}")
    if begun.startswith(_OTHER_MAGIC):
        raise DataError(f"{file}: the file begins with {begun[:6]!r}; {_WANTED}")
    if begun.startswith(_PARQUET_MAGIC):
        return _parquet_records
    if begun.startswith(b"["):
        return _array_records
    first, *lines = begun.split(b"\n")
    if not begun.startswith(b"{") and is_header(first) and not _mostly_json(lines):
        return _csv_records
    return _line_records


def _mostly_json(lines: Sequence[bytes]) -> bool:
    """Whether the first lines are JSON, as below a first line that is broken."""
    looked_at = [line.strip() for line in lines if line.strip()][:_LINES_LOOKED_AT]
    return sum(line.startswith(b"{") for line in looked_at) > len(looked_at) / 2


def _read(stream: Any, file: Folder, size: int = -1) -> bytes:
    try:
        return stream.read(size)
    except (OSError, EOFError, zlib.error) as error:
        _refuse(file, error)


def _lines(stream: Any, file: Folder, size: float = math.inf) -> Iterator[str]:
    """Each line with its end, as text; of the first `size` bytes."""
    while size > 0:
        try:
            line = stream.readline()
        except (OSError, EOFError, zlib.error) as error:
            _refuse(file, error)
        if not line:
            return
        size -= len(line)
        yield line.decode("utf-8", "surrogateescape")


def _line_records(stream: Any, file: Folder, span: Span | None = None) -> Iterator[Record]:
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


_JSON = json.JSONDecoder(object_pairs_hook=_object)


def _array_records(stream: Any, file: Folder) -> Iterator[Record]:
    try:
        values = array_values(functools.partial(_read, stream, file), _JSON)
        for row, value in enumerate(values):
            yield Record(row, value)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: the file is not a valid JSON array: {error}") from error


def _csv_records(stream: Any, file: Folder) -> Iterator[Record]:
    for row in csv_rows(_lines(stream, file), str(file)):
        yield Record(row.line, row.cells, row.problem, row.text)


def _parquet(stream: Any, file: Folder) -> pq.ParquetFile:
    try:
        found = pq.ParquetFile(stream, buffer_size=_CHUNK_BYTES, pre_buffer=False)
        columns = found.schema_arrow.names
    except (pa.ArrowException, OSError, ValueError) as error:  # or a column's name is not UTF-8
        _refuse(file, error)
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise DataError(f"{file}: the file names the columns {', '.join(map(repr, twice))} twice")
    return found


def _parquet_records(stream: Any, file: Folder, span: Span | None = None) -> Iterator[Record]:
    row = 0 if span is None else span.row
    groups = None if span is None else [*range(span.start, span.stop)]
    batches = _parquet(stream, file).iter_batches(_ROWS_AT_ONCE, groups, use_threads=False)
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError, ValueError) as error:
            _refuse(file, error)
        if batch is None:
            return
        for place in range(batch.num_rows):
            yield table_record(row + place, batch.slice(place, 1))
        row += batch.num_rows


def table_record(row: int, one: pa.RecordBatch) -> Record:
    """The record of a table's row, given as a batch of one."""
    try:
        return Record(row, one.to_pylist()[0])
    except UNREADABLE as error:
        return Record(row, None, problem=f"a value cannot be read: {error}", text=repr(error))


def _refuse(file: Folder, error: Exception) -> NoReturn:
    raise DataError(f"{file}: the file cannot be read to its end: {error}") from error
