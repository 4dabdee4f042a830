"""What became of a file's rows: examples, and bad rows with their reasons."""

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
    """A source row that became no example."""

    file: str
    row: int
    reason: str
    text: str


@dataclass
class FileRead:
    """What became of a file's rows.

    Attributes:
        rows: All of them: those that were used, and the bad ones.
        ignored: How many rows have something under a key that their format does not read.
        notices: What else is told of rows that were used, and of how many.
    """

    file: str
    rows: int = 0
    used: int = 0
    examples: list[Example] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    notices: Counter[str] = field(default_factory=Counter)

    def refuse(self, record: Record, reason: str) -> None:
        """Put a row into quarantine."""
        text = (record.text or _shown(record.value))[:_QUARANTINED_CHARACTERS]
        self.bad.append(BadRow(self.file, record.row, printable(reason), printable(text)))

    def ignore(self, row: Mapping[str, Any], known: Container[str]) -> None:
        """Count what a row has under keys that its format does not read."""
        unread = [key for key, value in row.items() if value is not None and key not in known]
        if unread:
            self.ignored.update(map(printable, unread))


def printable(text: str) -> str:
    """A text with question marks for its lone surrogates, which no file could hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _shown(value: Any) -> str:
    try:
        return json.dumps(value, default=repr, ensure_ascii=False)
    except (RecursionError, ValueError, TypeError):  # too deep, or with keys that JSON has not
        return f"a {type(value).__name__} that cannot be shown"
