"""The table that a prepare job prints at its end."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from metaalign.data.work.ledger import (
    CHECKED_TEXTS,
    DUPLICATES,
    ELSEWHERE,
    LOST,
    LOST_TEXTS,
    PLAIN,
    UNANSWERED,
)
from metaalign.examples import HELD_OUT, TRAIN
from metaalign.store.token_store import TokenStore
from metaalign.template import TIERS

_SHOWN = ("rows", "used", "quarantined", "written", TRAIN, HELD_OUT)
"""Columns of the printed ledger. What was left out is listed below it."""

_REASONS_SHOWN = 5


def overview(store: TokenStore) -> Table:
    """Rows in and examples out by source, what was left out and why, and what teachers cost."""
    table = Table(title=f"{store.path}: {len(store)} examples")
    table.add_column("source", overflow="fold")
    for name in _SHOWN:
        table.add_column(name.replace("_", " "), justify="right", no_wrap=True)
    for entry in store.manifest["ledger"]:
        table.add_row(Text(_short(entry["source"])), *(f"{entry[name]:,}" for name in _SHOWN))
    histogram = store.manifest["token_histogram"]
    tokens = ", ".join(f"{tier} {bins['tokens']:,}" for tier, bins in histogram.items())
    notes = [line for entry in store.manifest["ledger"] for line in _left_out(entry)]
    notes += _too_long(store.manifest["too_long"])
    notes += [_spent(name, spent) for name, spent in store.manifest["teachers"].items()]
    table.caption = Text(
        "\n".join([f"tokens: {tokens}", *notes])
    )  # users' text must not be read as markup
    table.caption_justify = "left"
    return table


def _left_out(entry: dict[str, Any]) -> Iterator[str]:
    """Lines about a source: rows and examples left out, notices, and keys that are not read."""
    name = _short(entry["source"])
    for reason, count in list(entry["reasons"].items())[:_REASONS_SHOWN]:
        yield f"{name}: {count:,} quarantined: {reason}"
    if entry[UNANSWERED]:
        yield f"{name}: {entry[UNANSWERED]:,} prompts without a response are left out"
    if entry[ELSEWHERE]:
        yield f"{name}: {entry[ELSEWHERE]:,} examples belong to another share"
    if entry[DUPLICATES]:
        yield f"{name}: {entry[DUPLICATES]:,} near-duplicates of held-out examples are left out"
    for tally in ("unfits", "untaughts"):
        for reason, count in list(entry[tally].items())[:_REASONS_SHOWN]:
            yield f"{name}: {count:,} examples are left out: {reason}"
    if entry[LOST_TEXTS]:
        checked, lost = entry[CHECKED_TEXTS], entry[LOST_TEXTS]
        first = entry[LOST][0]
        yield (
            f"{name}: the tokenizer does not give back {lost:,} of {checked:,} texts that were "
            f"checked ({lost / checked:.2%}), such as {first['text']!r}: {first['back']!r}"
        )
    if entry[PLAIN]:
        yield f"{name}: {entry[PLAIN]:,} examples stay without a negative"
    for notice, count in list(entry["notices"].items())[:_REASONS_SHOWN]:
        yield f"{name}: {count:,} rows: {notice}"
    if entry["ignored"]:
        keys = ", ".join(f"{key} ({count:,})" for key, count in entry["ignored"].items())
        yield f"{name}: keys that are not read, with the number of rows that have them: {keys}"


def _short(source: str) -> str:
    """The last two parts of a path or address, without its query."""
    return "/".join(source.partition("?")[0].rsplit("/", 2)[-2:])


def _too_long(summary: Mapping[str, Any]) -> Iterator[str]:
    """Lines about examples whose tiers leave no room for an answer."""
    if not summary.get("count"):
        return
    yield (
        f"{summary['count']:,} examples have tiers too long for a context of "
        f"{summary['context']:,}:"
    )
    for each in summary["first"][:_REASONS_SHOWN]:
        tiers = ", ".join(f"{tier} {each[tier]:,}" for tier in TIERS[:3] if each[tier])
        yield f"  {_short(each['source_file'])}, row {each['source_row']}: {tiers}"


def _spent(name: str, spent: Mapping[str, Any]) -> str:
    return f"teacher {name}: {spending(spent)}"


def spending(spent: Mapping[str, Any]) -> str:
    """A teacher's requests, tokens and cost as one line of text."""
    parts = [
        f"{spent['asked']:,} answers",
        f"{spent['kept']:,} kept ones",
        f"{spent['failed']:,} failed",
    ]
    if spent["again"]:
        parts.append(f"{spent['again']:,} sent again")
    parts.append(f"{spent['prompt_tokens']:,} + {spent['completion_tokens']:,} tokens")
    if spent["cost"]:
        parts.append(f"cost {spent['cost']:,.4g}")
    return ", ".join(parts)
