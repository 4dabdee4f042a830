"""The outcome of reading a file: examples, and bad rows with their reasons."""

import json
from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any

from metaalign.data.sources.records import Record
from metaalign.examples import Example

_QUARANTINED_CHARACTERS = 2_000


@dataclass(frozen=True)
class BadRow:
    """A source row that gave no example, with the reason."""

    file: str
    row: int
    reason: str
    text: str


@dataclass
class FileRead:
    """The examples and bad rows of a file, with counts.

    Attributes:
        rows: Number of all rows, used and bad.
        used: Number of rows that became examples.
        ignored: For each key that the format does not read, the number of rows that have it.
        notices: For each notice about used rows, the number of these rows.
    """

    file: str
    rows: int = 0
    used: int = 0
    examples: list[Example] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    notices: Counter[str] = field(default_factory=Counter)

    def refuse(self, record: Record, reason: str) -> None:
        """Add a row to the bad rows."""
        text = (record.text or _shown(record.value))[:_QUARANTINED_CHARACTERS]
        self.bad.append(BadRow(self.file, record.row, printable(reason), printable(text)))

    def ignore(self, row: Mapping[str, Any], known: Container[str]) -> None:
        """Count a row's keys that its format does not read."""
        unread = [key for key, value in row.items() if value is not None and key not in known]
        if unread:
            self.ignored.update(map(printable, unread))


def printable(text: str) -> str:
    """The text with a question mark for each lone surrogate, which cannot be encoded."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _shown(value: Any) -> str:
    try:
        return json.dumps(value, default=repr, ensure_ascii=False)
    except (RecursionError, ValueError, TypeError):  # too deep, or its keys are not valid in JSON
        return f"a {type(value).__name__} that cannot be shown"
