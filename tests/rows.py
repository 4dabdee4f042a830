"""Rows to what a format makes of them, for the tests of every shape."""

from typing import Any

from metaalign.data.formats import read_rows
from metaalign.data.sources.options import SourceOptions
from metaalign.data.sources.outcome import FileRead
from metaalign.data.sources.records import Record


def read(format: str, *rows: Any, **options: Any) -> FileRead:
    records = [Record(number, row) for number, row in enumerate(rows)]
    return read_rows(records, "rows.jsonl", format, SourceOptions(**options))


def reason(format: str, row: Any, **options: Any) -> str:
    (bad,) = read(format, row, **options).bad
    return bad.reason


def message(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


ASKED = [message("user", "Hi")]
TALK = [*ASKED, message("assistant", "a")]
OTHER = [*ASKED, message("assistant", "b")]
