"""Parses CSV and TSV with a header. A broken quote loses only the rows that it affects.

Reads lines, not files. Independent of the shapes of rows.
"""

import csv
import sys
from collections.abc import Iterator
from typing import NamedTuple

from metaalign.errors import DataError

_DELIMITERS = ",\t;"
_LONGEST_ROW = 2_000
"""Maximum number of lines of a row. A quote that is open for longer is taken as never closed."""
_TRUSTED_ROWS = 3
"""Number of consecutive valid rows required to resume after a broken one."""
_READ_AGAIN = 1_000_000
"""Maximum number of lines read again to find valid rows before the file is refused."""


class CsvRow(NamedTuple):
    """A row of a CSV file: its first line, from 0, and its cells by column."""

    line: int
    cells: dict[str, str | None] | None
    """None if the row has a problem. An empty cell is None."""
    problem: str
    text: str


def is_header(line: bytes) -> bool:
    """Whether a line can be the header of a CSV file: several distinct printable names."""
    try:
        text = line.decode("utf-8").strip()
        cells = next(csv.reader([text], delimiter=_delimiter(text)), [])
    except (UnicodeDecodeError, csv.Error):
        return False
    return text.replace("\t", "").isprintable() and len(cells) > 1 and len(set(cells)) == len(cells)


def csv_rows(lines: Iterator[str], name: str) -> Iterator[CsvRow]:
    """Every row below the header. Blank lines are skipped.

    A row with another number of cells than the header gets a problem. So does a row with a broken
    quote; it then includes all lines up to the next valid rows.

    Raises:
        DataError: the header is not valid, or too many lines have broken quotes.
    """
    csv.field_size_limit(sys.maxsize)
    taken = _Lines(lines)
    columns, delimiter = _header(taken, name)
    while True:
        taken.forget()
        line = taken.number
        cells, fault = _next_row(taken, delimiter)
        if fault:
            count = _count_broken(taken, delimiter, len(columns), name)
            lost = f"lines {line + 1} to {line + count}: " if count > 1 else ""
            yield CsvRow(line, None, f"not CSV: {lost}{fault}", taken.text(line))
        elif cells is None:
            return
        elif len(cells) == len(columns):
            row = {key: cell or None for key, cell in zip(columns, cells, strict=True)}
            yield CsvRow(line, row, "", taken.text(line))
        elif cells:
            fault = f"expected {len(columns)} cells as in the header, got {len(cells)}"
            yield CsvRow(line, None, fault, taken.text(line))


def _header(lines: "_Lines", name: str) -> tuple[list[str], str]:
    """The names of the columns, and the delimiter."""
    first = next((line for line in lines if line.strip()), "")
    lines.go_to(max(0, lines.number - 1))
    delimiter = _delimiter(first)
    cells, fault = _next_row(lines, delimiter)
    if not cells:
        raise DataError(f"{name}: the first row of a CSV file must name its columns: {fault}")
    columns = [cell.strip() for cell in cells]
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise DataError(f"{name}: the header names {', '.join(map(repr, twice))} twice")
    return columns, delimiter


def _delimiter(header: str) -> str:
    return max(_DELIMITERS, key=header.count)


def _next_row(lines: "_Lines", delimiter: str) -> tuple[list[str] | None, str]:
    """The cells of the next row, or None and its problem. None and an empty text at the end."""
    lines.begin_row()
    try:
        return next(csv.reader(lines, delimiter=delimiter, strict=True)), ""
    except StopIteration:
        return None, ""
    except csv.Error as error:
        return None, str(error)


def _count_broken(lines: "_Lines", delimiter: str, width: int, name: str) -> int:
    """Number of lines from a broken row's first to the next valid rows. Moves reading there."""
    first = lines.row
    quoted = lines.text(first).startswith('"')
    resume, again = first, 0
    while True:
        resume += 1
        lines.go_to(resume)
        whole = _rows_follow(lines, delimiter, width, quoted=quoted)
        again += lines.number - resume
        if again > _READ_AGAIN:
            raise DataError(f"{name}: its quotes are broken in too many lines to read it as CSV")
        if whole:
            lines.go_to(resume)
            return resume - first


def _rows_follow(lines: "_Lines", delimiter: str, width: int, *, quoted: bool) -> bool:
    """Whether the next rows are all valid, or the file ends."""
    for _ in range(_TRUSTED_ROWS):
        cells, fault = _next_row(lines, delimiter)
        if cells is None and not fault:
            return True
        text = lines.text(lines.row)
        bare = any('"' in cell and cell.replace('"', '""') not in text for cell in cells or ())
        if fault or len(cells or ()) != width or bare or (quoted and not text.startswith('"')):
            return False
    return True


class _Lines:
    """An iterator over lines that can go back to earlier lines."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._unread = lines
        self._kept: list[str] = []
        self._first = 0
        """Number of the first line that is kept."""

        self.number = 0
        """Number of the next line, from 0."""

        self.row = 0
        """Number of the current row's first line."""

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        place = self.number - self._first
        if self.number - self.row >= _LONGEST_ROW:
            raise StopIteration
        if place == len(self._kept):
            self._kept.append(next(self._unread))
        self.number += 1
        return self._kept[place]

    def begin_row(self) -> None:
        """Mark the next line as the first of a row."""
        self.row = self.number

    def text(self, since: int) -> str:
        """The text of all lines from `since` up to the next line."""
        return "".join(self._kept[since - self._first : self.number - self._first])

    def go_to(self, number: int) -> None:
        """Continue at an earlier line, or at most at the first line that was not read yet."""
        self.number = min(number, self._first + len(self._kept))

    def forget(self) -> None:
        """Drop the lines that were read. `go_to` cannot return to them."""
        del self._kept[: self.number - self._first]
        self._first = self.number
