"""What a source's settings ask of its rows, and what became of them. Knows no file."""

import hashlib
import json
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from metaalign.config.prepare import Recipe, Wire
from metaalign.config.teacher import JudgementConfig, NegativesConfig, ResponsesConfig
from metaalign.data.records import Record
from metaalign.errors import RowError
from metaalign.examples import HELD_OUT, TRAIN, Example

_QUARANTINED_CHARACTERS = 2_000


@dataclass(frozen=True)
class Reading:
    """How a source's rows become examples.

    Attributes:
        is_told: Whether the settings name the format, rather than the first rows.
    """

    is_told: bool = False
    system_info: str = ""
    user_info: str | None = None
    order_by: str | None = None
    assistant_turns: Literal["every", "last"] = "every"
    held_out_ratio: float = 0.0
    share: tuple[float, float] = (0.0, 1.0)
    oppose_personas: bool = True
    recipe: Recipe | None = None
    held_out_families: tuple[str, ...] = ()
    wire: Wire = "ultrafeedback"
    objectives: tuple[tuple[str, str], ...] = ()
    warm_up_ratio: float = 1.0
    responses: ResponsesConfig | None = None
    judgement: JudgementConfig | None = None
    judged_by: str | None = None
    negatives: NegativesConfig | None = None
    seed: int = 0

    @property
    def is_taught(self) -> bool:
        """Whether a teacher is asked for anything."""
        return (self.responses, self.judgement, self.negatives) != (None, None, None)

    def split(self, key: str) -> str:
        """The split that a conversation or statement belongs to, by hash."""
        return HELD_OUT if _drawn(f"{self.seed}/{key}") < self.held_out_ratio else TRAIN

    def takes(self, example: Example, *, written: bool = False) -> bool:
        """Whether an example is of the share that the store takes.

        Args:
            written: By rule: then all that ask one query are of one share, for one example may be
                written twice.
        """
        if self.share == (0.0, 1.0) or example.tags["split"] == HELD_OUT:
            return True
        told = example.turns[-1].text if written else example.conversation
        first, last = self.share
        return first <= _drawn(f"{self.seed}/share/{told}") < last

    def ordered(self, examples: list[Example]) -> list[Example]:
        """A row's examples as `order_by` orders them; those that nobody judged by it are left out.

        Raises:
            RowError: no answer of the row was judged by it.
        """
        if self.order_by is None:
            return examples
        names = judged_objectives(each.scores for example in examples for each in example.responses)
        if not names:
            return examples
        if self.order_by not in names:
            raise RowError(f"order_by {self.order_by!r} is not among its objectives {names}")
        return [
            replace(example, order_by=self.order_by)
            for example in examples
            if self.order_by in judged_objectives(each.scores for each in example.responses)
        ]


def _drawn(key: str) -> float:
    """A number from 0 to below 1, the same for a key everywhere."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
    return (int.from_bytes(digest[:8], "little") >> 11) / 2**53


def judged_objectives(scores: Iterable[Mapping[str, float | None]]) -> list[str]:
    """What answers with these scores were judged by."""
    judged = (name for each in scores for name, score in each.items() if score is not None)
    return list(dict.fromkeys(judged))


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
    """

    file: str
    rows: int = 0
    used: int = 0
    examples: list[Example] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)

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


def conversation_key(*texts: str) -> str:
    """A short key, the same for the same texts everywhere."""
    digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    return digest[:16]
