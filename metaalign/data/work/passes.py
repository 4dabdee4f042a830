"""The passes of the prepare job over one part: survey, ask, survey again, write.

All passes give the same examples for a part: one pass asks the teachers, and the passes after it
look the answers up. Plain functions; does not import Ray.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from metaalign.data.sources.outcome import BadRow, printable
from metaalign.data.teachers.replies import Ask
from metaalign.data.work.enriching import apply_recipe, enrich, run_without_waiting
from metaalign.data.work.ledger import (
    DUPLICATES,
    ELSEWHERE,
    FOLDER,
    PartLedger,
    Quarantine,
    add_counts,
    close_entry,
    quarantine,
    read_counts,
)
from metaalign.data.work.near_duplicates import HeldOutSignatures, NearHeldOut
from metaalign.data.work.parts import Part, read_part
from metaalign.errors import RowError
from metaalign.examples import Example
from metaalign.store.encoder import SegmentEncoder
from metaalign.store.round_trip import RoundTrip
from metaalign.store.writer import ShardWriter
from metaalign.upstream import AnswerError

Keeps = Callable[[Example], bool]
"""Returns whether an example stays, which is false for a near-duplicate."""


def raw_examples(part: Part, keeps: Keeps | None = None) -> Iterator[Example]:
    """A part's examples in order, before teachers and recipes are applied."""
    for read in read_part(part):
        for example in read.examples:
            answered = example.responses or part.options.responses
            if answered and not _left_out(part, example, keeps):
                yield example


def survey_part(
    part: Part,
    number: int,
    *,
    folder: Path,
    sampled: bool = True,
    signed: bool = False,
    near: NearHeldOut | None = None,
    ask: Ask | None = None,
) -> None:
    """Read a part and write its counts and bad rows, and on request a sample and signatures.

    Args:
        number: The part's place in the store's order.
        folder: The folder that the store is built in.
        sampled: Whether to keep a sample of its text.
        signed: Whether to write the signatures of its held-out examples.
        near: If given, near-duplicates of held-out examples are left out.
        ask: Looks up teachers' answers. None before they were asked; then examples are counted as
            they are read.
    """
    ledger, signatures = PartLedger(sampled=sampled), HeldOutSignatures()
    keeps = signatures.take if signed else near and near.keeps
    with quarantine(folder, number, part.name) as refused:
        for _ in part_examples(part, ledger, refused, keeps=keeps, ask=ask):
            pass
    ledger.write(folder, number)
    if signed:
        signatures.write(signatures_of(folder, number))


def signatures_of(folder: Path, number: int) -> Path:
    """The file of a part's signatures."""
    return folder / FOLDER / f"{number:06d}.npy"


def write_part(
    part: Part,
    number: int,
    folder: Path,
    encoder: SegmentEncoder,
    *,
    near: NearHeldOut | None = None,
    ask: Ask | None = None,
) -> None:
    """Write a part's examples as shards, and its counts and bad rows.

    Args:
        near: If given, near-duplicates of held-out examples are left out.
        ask: Looks up teachers' answers.
    """
    ledger, shards = PartLedger(sampled=False), ShardWriter(folder, number)
    round_trip = RoundTrip(encoder.template)
    keeps = near and near.keeps
    with quarantine(folder, number, part.name) as refused:
        for examples in part_examples(part, ledger, refused, keeps=keeps, ask=ask):
            shards.add(encoder.encode(examples, round_trip))
    shards.close()
    ledger.add_texts(round_trip)
    ledger.write(folder, number)


def part_examples(
    part: Part,
    ledger: PartLedger,
    refused: Quarantine,
    *,
    keeps: Keeps | None = None,
    ask: Ask | None = None,
) -> Iterator[list[Example]]:
    """The examples of a part that a store gets, some at a time. Counts each stage in the ledger."""
    options = part.options
    for read in read_part(part):
        refused.add(read.bad)
        made: list[Example] = []
        for example in ledger.add_rows(read, answers=options.responses is not None):
            left_out = _left_out(part, example, keeps)
            if left_out:
                ledger.add_left_out(left_out)
                continue
            try:
                made += _enriched(part, example, ask)
            except AnswerError as error:
                ledger.add_untaught(str(error))
                refused.add([_untaught(part, example, error)])
            except RowError as error:
                ledger.add_unfit(str(error))
        ledger.add_examples(made, negatives=options.negatives is not None)
        yield made


def _enriched(part: Part, example: Example, ask: Ask | None) -> list[Example]:
    if not part.options.is_taught:
        return apply_recipe(example, part.options)
    return [example] if ask is None else run_without_waiting(enrich(example, part.options, ask))


def _left_out(part: Part, example: Example, keeps: Keeps | None) -> str | None:
    """Why an example is left out before teachers and recipes; None if it stays.

    Rule-written examples are split by question and family, so they are never near-duplicates.
    """
    if not part.options.takes(example, written=part.recipes is not None):
        return ELSEWHERE
    is_near = keeps is not None and part.recipes is None and not keeps(example)
    return DUPLICATES if is_near else None


def _untaught(part: Part, example: Example, error: AnswerError) -> BadRow:
    query = printable(example.turns[-1].text)
    return BadRow(part.name, example.source.row, printable(str(error)), query)


def read_ledger(parts: Sequence[Part], folder: Path) -> list[dict[str, Any]]:
    """Rows in, examples out and rows quarantined, by source, in the settings' order."""
    ledger: dict[int | None, dict[str, Any]] = {}
    files: dict[int | None, set[str]] = {}
    for number, part in enumerate(parts):
        entry = ledger.setdefault(part.number, {"source": part.source, "formats": [], "files": 0})
        files.setdefault(part.number, set()).update([] if part.recipes else [part.name])
        entry["files"] = len(files[part.number])
        entry["formats"] = sorted({*entry["formats"], part.format})
        add_counts(entry, read_counts(folder, number))
    multiplied = {part.number for part in parts if part.options.recipe or part.options.responses}
    for number, entry in ledger.items():
        close_entry(entry, multiplied=number in multiplied)
    return list(ledger.values())
