"""The passes of the prepare job over one part: survey, ask, survey again, write.

Passes make the same of the same part: what teachers answer is asked for in one of them, and looked
up in those that follow. Plain functions, no Ray.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from metaalign.data.sources.outcome import BadRow, printable
from metaalign.data.teachers.replies import Ask
from metaalign.data.work.enriching import in_recipe, looked_up, made_of
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
"""Whether an example of a source is no near-duplicate."""


def raw_examples(part: Part, keeps: Keeps | None = None) -> Iterator[Example]:
    """A part's examples before teachers and recipes, in order."""
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
    """Keep a part's counts and bad rows, and what else is asked for.

    Args:
        number: The part's place in the store's order.
        folder: That the store is built in.
        sampled: Keep a sample of its text.
        signed: Keep the signatures of its held-out examples.
        near: Tells near-duplicates of held-out examples, which are left out.
        ask: Looks up what teachers answered; None before they were asked, when examples are
            counted as they were read.
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
    """Where a part's signatures are kept."""
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
    """Write a part's examples as shards, and keep its counts and bad rows.

    Args:
        near: Tells near-duplicates of held-out examples, which are left out.
        ask: Looks up what teachers answered.
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
    """What a store gets of a part, some at a time, each stage told to the ledger."""
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
                made += _made(part, example, ask)
            except AnswerError as error:
                ledger.add_untaught(str(error))
                refused.add([_untaught(part, example, error)])
            except RowError as error:
                ledger.add_unfit(str(error))
        ledger.add_examples(made, negatives=options.negatives is not None)
        yield made


def _made(part: Part, example: Example, ask: Ask | None) -> list[Example]:
    if not part.options.is_taught:
        return in_recipe(example, part.options)
    return [example] if ask is None else looked_up(made_of(example, part.options, ask))


def _left_out(part: Part, example: Example, keeps: Keeps | None) -> str | None:
    """Why an example is left out before anything is made of it.

    Rule-written ones are split by what they ask and prefer, and are no near-duplicates.
    """
    if not part.options.takes(example, written=part.recipes is not None):
        return ELSEWHERE
    is_near = keeps is not None and part.recipes is None and not keeps(example)
    return DUPLICATES if is_near else None


def _untaught(part: Part, example: Example, error: AnswerError) -> BadRow:
    said = printable(example.turns[-1].text)
    return BadRow(part.name, example.source.row, printable(str(error)), said)


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
