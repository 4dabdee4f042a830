"""Splits files into ranges that tasks read separately. The ranges depend on the files alone."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from tqdm import tqdm

from metaalign.data.sources.file_kinds import BYTE_ORDER_MARK
from metaalign.data.sources.opening import is_unpacked, opened, read_bytes
from metaalign.data.sources.records import (
    CHUNK_BYTES,
    Span,
    line_records,
    parquet_file,
    parquet_records,
    reader_of,
)
from metaalign.folders import Folder

_SHOWN_BYTES = 1 << 28
"""Files of at least this size show a progress bar while they are read."""


def split_file(file: Folder, size: int, *, field: str | None = None) -> list[Span | None]:
    """Ranges of about `size` bytes, or [None] if a file can only be read from its beginning.

    Parquet is split at row groups. For plain JSON lines use `scan_lines`.

    Raises:
        DataError, StorageError: as `read_records`.
    """
    with opened(file) as stream:
        if reader_of(stream, file, field) is parquet_records:
            return [*_row_groups(parquet_file(stream, file), size)] or [None]
    return [None]


def scan_lines(
    file: Folder, size: int, *, field: str | None = None
) -> tuple[str, list[Span]] | None:
    """Read a local file of plain JSON lines once, for its sha256 and ranges of about `size` bytes.

    Returns:
        The sha256 and the ranges; None for any other file.

    Raises:
        DataError, StorageError: as `read_records`.
    """
    with opened(file) as stream:
        if not isinstance(file, Path) or is_unpacked(stream):
            return None
        if reader_of(stream, file, field) is not line_records:
            return None
        digest = hashlib.sha256(BYTE_ORDER_MARK if stream.tell() else b"")
        held = file.stat().st_size
        with tqdm(
            total=held,
            desc=f"reading {file.name}",
            unit="B",
            unit_scale=True,
            mininterval=5,
            disable=held < _SHOWN_BYTES,
        ) as bar:

            def see(part: bytes) -> None:
                digest.update(part)
                bar.update(len(part))

            spans = [*_line_spans(stream, file, size, see)]
    return digest.hexdigest(), spans


def joined_spans(spans: Sequence[Span], size: int) -> Iterator[Span]:
    """Join consecutive ranges of lines until each has at least `size` bytes."""
    first = None
    for span in spans:
        first = first or span
        if span.stop - first.start >= size:
            yield Span(first.start, span.stop, first.row)
            first = None
    if first is not None:
        yield Span(first.start, spans[-1].stop, first.row)


def _line_spans(
    stream: Any, file: Folder, size: int, see: Callable[[bytes], object]
) -> Iterator[Span]:
    start, row = stream.tell(), 0
    while True:
        stop, lines = start, 0
        while stop < start + size:
            chunk = read_bytes(stream, file, min(CHUNK_BYTES, start + size - stop))
            if not chunk:
                break
            see(chunk)
            stop, lines = stop + len(chunk), lines + chunk.count(b"\n")
        rest = stream.readline()
        see(rest)
        stop, lines = stop + len(rest), lines + rest.endswith(b"\n")
        if stop == start:
            return
        yield Span(start, stop, row)
        start, row = stop, row + lines


def _row_groups(file: pq.ParquetFile, size: int) -> Iterator[Span]:
    start, row, held, rows = 0, 0, 0, 0
    for group in range(file.num_row_groups):
        metadata = file.metadata.row_group(group)
        held, rows = held + metadata.total_byte_size, rows + metadata.num_rows
        if held >= size or group == file.num_row_groups - 1:
            yield Span(start, group + 1, row)
            start, row, held, rows = group + 1, row + rows, 0, 0
