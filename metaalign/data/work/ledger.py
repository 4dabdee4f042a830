"""What happened to every source row: counts, reasons and bad rows, written to files by each task.

A part's files appear only once they are complete, and the same part gives the same files, so a task
can be run again. In the folder that the store is built in:

    parts/000003.json               {"rows": 2312, "used": 2299, ..., "texts": ["Capital of Peru?"]}
    quarantine/000003-pairs.jsonl   {"file": "...", "row": 41, "reason": "...", "text": "..."}
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from metaalign.data.sources.outcome import BadRow, FileRead
from metaalign.examples import HELD_OUT, TRAIN, Example
from metaalign.folders import whole_file
from metaalign.store.round_trip import RoundTrip
from metaalign.store.tokenizer import sample_texts

FOLDER, QUARANTINE = "parts", "quarantine"

UNANSWERED, DUPLICATES, UNFIT, UNTAUGHT = "unanswered", "duplicates", "unfit", "untaught"
ELSEWHERE = "elsewhere"
LEFT_OUT = (UNANSWERED, ELSEWHERE, DUPLICATES, UNFIT, UNTAUGHT)

PLAIN = "plain"
CHECKED_TEXTS, LOST_TEXTS = "checked_texts", "lost_texts"
LOST = "lost"
"""The first texts that the tokenizer does not decode to themselves, and the decoded texts."""

COUNTS = (
    *("rows", "used", "quarantined", "examples", *LEFT_OUT, "written", TRAIN, HELD_OUT, PLAIN),
    *(CHECKED_TEXTS, LOST_TEXTS),
)
"""The counts of a source.

rows, used, quarantined: source rows; those that became examples; those that did not.
examples: examples of the used rows. Left out of them: `unanswered` (no response), `elsewhere` (of
    another share), `duplicates` (of a held-out example), `unfit` (the recipe cannot use them) and
    `untaught` (a teacher gave no answer).
written: examples in the store; a recipe may write several for each. train, held_out: those of each
    split. plain: those without a negative although negatives are set.
checked_texts, lost_texts: texts that were decoded again; those that decode to another text.
"""

TALLIES = ("reasons", "ignored", "notices", "unfits", "untaughts")
"""Why rows were quarantined; keys that the format does not read; notices about used rows; why
recipes cannot use examples; why teachers gave no answer."""

_LOST_SHOWN, _MOST_COMMON, _REASONS_PER_PART = 3, 20, 1_000
"""How many lost texts and most common reasons the ledger lists; how many reasons a part counts."""


class PartLedger:
    """Counts one part's rows and examples.

    Attributes:
        sampled: Whether to keep a sample of the part's text for training a tokenizer.
    """

    def __init__(self, *, sampled: bool) -> None:
        self.sampled = sampled
        self._counts: Counter[str] = Counter()
        self._tallies = {name: Counter[str]() for name in TALLIES}
        self._texts: list[str] = []
        self._lost: list[dict[str, str]] = []

    def add_rows(self, read: FileRead, *, answers: bool = False) -> list[Example]:
        """Count the next rows. Returns their examples that have a response or will get one.

        Args:
            answers: Whether a teacher answers the examples without a response.
        """
        examples = [example for example in read.examples if example.responses or answers]
        self._counts.update(
            {
                "rows": read.rows,
                "used": read.used,
                "quarantined": len(read.bad),
                "examples": len(read.examples),
                UNANSWERED: len(read.examples) - len(examples),
            }
        )
        _tally(self._tallies["reasons"], Counter(_kind_of(row.reason) for row in read.bad))
        _tally(self._tallies["ignored"], read.ignored)
        _tally(self._tallies["notices"], read.notices)
        return examples

    def add_left_out(self, why: str) -> None:
        """Count an example that is left out: of another share, or a near-duplicate."""
        self._counts[why] += 1

    def add_unfit(self, reason: str) -> None:
        """Count an example that its recipe cannot use."""
        self._counts[UNFIT] += 1
        _tally(self._tallies["unfits"], {reason: 1})

    def add_untaught(self, reason: str) -> None:
        """Count an example for which a teacher gave no answer."""
        self._counts[UNTAUGHT] += 1
        _tally(self._tallies["untaughts"], {_kind_of(reason): 1})

    def add_examples(self, examples: Sequence[Example], *, negatives: bool = False) -> None:
        """Count examples that are written to the store.

        Args:
            negatives: Whether a teacher was asked for a negative to each example.
        """
        self._counts["written"] += len(examples)
        if negatives:
            self._counts[PLAIN] += sum("negative" not in each.tags for each in examples)
        self._counts.update(example.tags["split"] for example in examples)
        if self.sampled:
            self._texts = sample_texts([*self._texts, *_texts(examples)])

    def add_texts(self, round_trip: RoundTrip) -> None:
        """Add the counts and examples of the round trip of the part's texts."""
        self._counts.update({CHECKED_TEXTS: round_trip.checked, LOST_TEXTS: round_trip.lost})
        self._lost += round_trip.examples

    def write(self, folder: Path, number: int) -> None:
        """Write the counts of a part that was read completely."""
        counts = {**{name: self._counts[name] for name in COUNTS}, **self._tallies}
        with _whole(folder / FOLDER / f"{number:06d}.json") as stream:
            json.dump({**counts, LOST: self._lost, "texts": self._texts}, stream)


def _tally(tally: Counter[str], more: Mapping[str, int]) -> None:
    """Add to a tally. Once it has the maximum number of names, new ones count as others."""
    for name, count in more.items():
        tally[name if name in tally or len(tally) < _REASONS_PER_PART else "others"] += count


def _kind_of(reason: str) -> str:
    """A reason without its value or line number, so that equal reasons are counted together."""
    return reason.partition(", got ")[0].partition(": line ")[0]


def _texts(examples: Sequence[Example]) -> set[str]:
    """Texts that the tokenizer may be trained on: those of the training split."""
    texts: set[str] = set()
    for example in examples:
        if example.tags["split"] == TRAIN:
            texts |= {example.system_info, example.user_info}
            texts |= {text for turn in example.turns for text in (turn.text, turn.user_info)}
            texts |= {response.text for response in example.responses}
    return texts - {""}


class Quarantine:
    """Writes a part's bad rows to a file as JSON lines."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def add(self, bad: Sequence[BadRow]) -> None:
        """Write the next bad rows."""
        for row in bad:
            self._stream.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")


@contextmanager
def quarantine(folder: Path, number: int, name: str) -> Iterator[Quarantine]:
    """Open the quarantine of a part. No file is written if there are no bad rows.

    Args:
        name: Name of the source file, which becomes part of the file's name.
    """
    stem = name.rpartition("/")[2].partition(".")[0]
    with _whole(folder / QUARANTINE / f"{number:06d}-{stem}.jsonl") as stream:
        yield Quarantine(stream)


@contextmanager
def _whole(file: Path) -> Iterator[TextIO]:
    """A text file that appears once it is complete, and only if it is not empty."""
    file.parent.mkdir(exist_ok=True)
    with whole_file(file) as unfinished:
        with unfinished.open("w", encoding="utf-8") as stream:
            yield stream
        if not unfinished.stat().st_size:
            unfinished.unlink()


def read_counts(folder: Path, number: int) -> dict[str, Any]:
    """Read what `PartLedger.write` wrote for a part."""
    return json.loads((folder / FOLDER / f"{number:06d}.json").read_text(encoding="utf-8"))


def read_sample(folder: Path, count: int) -> list[str]:
    """The sample of all parts' text. It does not depend on how the rows were split into parts."""
    sample: list[str] = []
    for number in range(count):
        sample = sample_texts([*sample, *read_counts(folder, number)["texts"]])
    return sample


def add_counts(entry: dict[str, Any], counts: Mapping[str, Any]) -> None:
    """Add a part's counts to its source's entry."""
    for name in COUNTS:
        entry[name] = entry.get(name, 0) + counts[name]
    for name in TALLIES:
        _tally(entry.setdefault(name, Counter()), counts[name])
    entry[LOST] = [*entry.get(LOST, ()), *counts[LOST]][:_LOST_SHOWN]


def close_entry(entry: dict[str, Any], *, multiplied: bool) -> None:
    """Assert that a source's counts add up, and keep only the most common reasons.

    Args:
        multiplied: Whether one example of the source may become several.
    """
    assert entry["rows"] == entry["used"] + entry["quarantined"], entry
    assert entry["written"] == entry[TRAIN] + entry[HELD_OUT], entry
    left = entry["examples"] - sum(entry[name] for name in LEFT_OUT)
    assert left <= entry["written"] if multiplied else left == entry["written"], entry
    for name in TALLIES:
        entry[name] = dict(entry[name].most_common(_MOST_COMMON))


def read_quarantine(folder: Path, numbers: Iterable[int], *, limit: int) -> list[BadRow]:
    """The first bad rows of some parts."""
    found = [file for n in numbers for file in (folder / QUARANTINE).glob(f"{n:06d}-*.jsonl")]
    return [BadRow(**json.loads(line)) for line in islice(_lines(found), limit)]


def _lines(files: Iterable[Path]) -> Iterator[str]:
    for file in files:
        with file.open(encoding="utf-8") as stream:
            yield from stream
