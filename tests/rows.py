"""Rows to what a format makes of them, for the tests of every shape."""

from typing import Any

from metaalign.data.formats import read_rows
from metaalign.data.reading import FileRead, Reading
from metaalign.data.records import Record


def read(format: str, *rows: Any, **reading: Any) -> FileRead:
    records = [Record(number, row) for number, row in enumerate(rows)]
    return read_rows(records, "rows.jsonl", format, Reading(**reading))


def reason(format: str, row: Any, **reading: Any) -> str:
    (bad,) = read(format, row, **reading).bad
    return bad.reason


def message(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


ASKED = [message("user", "Hi")]
TALK = [*ASKED, message("assistant", "a")]
OTHER = [*ASKED, message("assistant", "b")]
