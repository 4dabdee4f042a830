"""Checks that end a prepare job: too many bad rows, too much lost text, or an empty split."""

import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from metaalign.config import PrepareConfig
from metaalign.data.work.ledger import (
    CHECKED_TEXTS,
    LOST,
    LOST_TEXTS,
    QUARANTINE,
    UNANSWERED,
    UNTAUGHT,
    read_quarantine,
)
from metaalign.data.work.parts import RECIPES, Part
from metaalign.data.work.passes import read_ledger
from metaalign.errors import DataError
from metaalign.examples import HELD_OUT, TRAIN
from metaalign.store.writer import StoreWriter

_BAD_ROWS_SHOWN = 3


def check_ledger(
    config: PrepareConfig, parts: Sequence[Part], writer: StoreWriter
) -> list[dict[str, Any]]:
    """Read the ledger and check it.

    Raises:
        DataError: a source has too many bad rows or lost texts, or a split is empty.
    """
    ledger = read_ledger(parts, writer.folder)
    numbers = dict.fromkeys(part.number for part in parts)
    for number, entry in zip(numbers, ledger, strict=True):
        allowed = max_bad_ratio(config, number)
        more = f"more than max_bad_ratio {allowed} allows"
        if entry["quarantined"] > allowed * entry["rows"]:
            wrong = f"{entry['quarantined']} of {entry['rows']} rows are bad, {more}"
            remedy = "Fix the rows or raise max_bad_ratio."
            _refuse(number, parts, writer, f"{entry['source']}: {wrong}", remedy)
        if entry[UNTAUGHT] > allowed * entry["examples"]:
            wrong = f"teachers gave no answer for {entry[UNTAUGHT]} of {entry['examples']} examples"
            _refuse(number, parts, writer, f"{entry['source']}: {wrong}, {more}", _ASK_AGAIN)
        _check_texts(config, entry)
    unanswered = sum(entry[UNANSWERED] for entry in ledger)
    if unanswered and unanswered == sum(entry["examples"] for entry in ledger):
        raise DataError(
            f"none of {unanswered:,} prompts has a response to train on; give sources that have "
            "answers, too"
        )
    if not sum(entry[TRAIN] for entry in ledger):
        raise DataError(
            f"no example is left in the split {TRAIN}; held_out_ratio is {config.held_out_ratio}, "
            "and rows may set their own split in tags.split"
        )
    files = [entry for entry in ledger if entry["source"] != RECIPES]
    if config.held_out_ratio > 0 and files and not sum(entry[HELD_OUT] for entry in files):
        raise DataError(
            f"the split {HELD_OUT} is empty: none of {sum(entry['examples'] for entry in files)} "
            f"examples fell into held_out_ratio {config.held_out_ratio}; raise it, add data, or "
            "set held_out_ratio=0 to hold nothing out"
        )
    return ledger


def _check_texts(config: PrepareConfig, entry: Mapping[str, Any]) -> None:
    """Refuse a tokenizer that loses too much of a source's text."""
    checked, lost, allowed = entry[CHECKED_TEXTS], entry[LOST_TEXTS], config.max_lost_text_ratio
    if lost <= allowed * checked:
        return
    first = entry[LOST][0]
    raise DataError(
        f"{entry['source']}: the tokenizer {config.tokenizer.path or 'that was trained'} does not "
        f"give back {lost:,} of {checked:,} texts that were checked, more than max_lost_text_ratio "
        f"{allowed} allows. {first['text']!r} comes back as {first['back']!r}. A model can "
        "neither read nor write what the tokenizer loses: set a tokenizer.path that has these "
        "characters, leave it out to train one that has all, or raise max_lost_text_ratio"
    )


def max_bad_ratio(config: PrepareConfig, number: int | None) -> float:
    """The share of bad rows that a source may have. `number` is None for the recipes."""
    own = None if number is None else config.sources[number].max_bad_ratio
    return config.max_bad_ratio if own is None else own


_ASK_AGAIN = (
    "The answers so far are kept: fix the cause and start the job again, or raise max_bad_ratio."
)


def _refuse(
    number: int | None, parts: Sequence[Part], writer: StoreWriter, wrong: str, remedy: str
) -> NoReturn:
    """Move the quarantine beside the store's path, and raise the error."""
    kept = writer.path.with_name(f"{writer.path.name}-quarantine")
    numbers = [place for place, part in enumerate(parts) if part.number == number]
    bad = read_quarantine(writer.folder, numbers, limit=_BAD_ROWS_SHOWN)
    shutil.rmtree(kept, ignore_errors=True)
    os.replace(writer.folder / QUARANTINE, kept)
    first = "".join(f"\n  {row.file}, row {row.row}: {row.reason}" for row in bad)
    raise DataError(
        f"{wrong}. All of them, with their reasons, are in {kept}. {remedy} The first:{first}"
    )
