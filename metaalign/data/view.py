"""Shows a token store in a terminal or as a page: manifest, lengths, and examples in colour.

Each tier has a colour. Special tokens are white on it, and targets of the loss are underlined.
Does not import Ray.
"""

import argparse
import io
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from metaalign.data.work.ledger import LEFT_OUT
from metaalign.data.work.overview import spending
from metaalign.errors import DataError, MetaAlignError
from metaalign.examples import best_response
from metaalign.store.display import TIER_STYLES, tokens_as_text
from metaalign.store.token_store import TokenStore
from metaalign.template import TIERS

_LEFT_OUT = ("quarantined", *LEFT_OUT)
"""Counts of the ledger that are shown only if some source left something out."""

_NEEDED = {"meta_prompts", "sequence_histogram", "shared_prefix"}
"""Keys that the manifests of earlier versions lack."""

_BAR_WIDTH = 40
_PAGE_WIDTH = 110


def look(store: TokenStore, examples: Sequence[int]) -> Group:
    """The view of a store and of some of its examples.

    Raises:
        DataError: an earlier version prepared the store, and its manifest lacks keys.
    """
    if not store.manifest.keys() >= _NEEDED:
        raise DataError(
            f"{store.path}: an earlier version prepared this token store; prepare it again to look "
            "at it"
        )
    parts: list[RenderableType] = [_overview(store), _ledger(store), _lengths(store), _legend()]
    chosen = store.subset(examples)
    parts += [_example(chosen, place, number) for place, number in enumerate(examples)]
    return Group(*parts)


def choose_examples(store: TokenStore, count: int) -> list[int]:
    """Up to `count` examples, from as many recipes, source files and splits as possible."""
    looked_at = _spread(len(store))
    some = store.subset(looked_at)
    kinds: dict[tuple[str, str, str], list[int]] = {}
    for place, example in enumerate(looked_at):
        source, split = some.columns.source_file[place], some.columns.split[place]
        key = (some.tags(place).get("recipe", ""), str(source), str(split))
        kinds.setdefault(key, []).append(example)
    turns = max(map(len, kinds.values()), default=0)
    chosen = [kind[turn] for turn in range(turns) for kind in kinds.values() if turn < len(kind)]
    return sorted(chosen[:count])


def _spread(size: int, most: int = 2_000) -> list[int]:
    """Evenly spaced places in a store, so that not every example of a large one is read."""
    return [int(place) for place in np.unique(np.linspace(0, size - 1, min(size, most)))]


def write_page(store: TokenStore, file: Path, examples: Sequence[int]) -> None:
    """Write the view as one HTML page."""
    console = Console(record=True, width=_PAGE_WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(look(store, examples))
    file.write_text(console.export_html(), encoding="utf-8")


def _overview(store: TokenStore) -> Table:
    manifest = store.manifest
    table = Table(title=str(store.path), show_header=False, title_justify="left")
    rows = {
        "examples": f"{len(store):,}",
        **{f"by {name}": _listed(counts) for name, counts in manifest["counts"].items() if counts},
        "meta-prompts": f"{manifest['meta_prompts']:,} different",
        "tokens": _listed(
            {tier: bins["tokens"] for tier, bins in manifest["token_histogram"].items()}
        ),
        "shared prefix": ", ".join(
            f"{name} {share:.1%}" for name, share in manifest["shared_prefix"].items()
        ),
        "shards": f"{len(manifest['shards']):,}",
        "fingerprint": manifest["fingerprint"][:16],
        "template": manifest["template_fingerprint"][:16],
    }
    for name, value in rows.items():
        table.add_row(name, value)
    for name, spent in manifest.get("teachers", {}).items():
        table.add_row(f"teacher {name}", spending(spent))
    return table


def _listed(counts: dict[str, int], most: int = 8) -> str:
    shown = [f"{name.rpartition('/')[2]} {count:,}" for name, count in counts.items()]
    more = [f"and {len(shown) - most} more"] if len(shown) > most else []
    return ", ".join(shown[:most] + more)


def _ledger(store: TokenStore) -> Table:
    table = Table(title="sources of the examples", title_justify="left")
    table.add_column("source", overflow="fold")
    ledger = store.manifest["ledger"]
    names = ["rows", *(name for name in _LEFT_OUT if any(entry.get(name) for entry in ledger))]
    for name in [*names, "written"]:
        table.add_column(name, justify="right", no_wrap=True)
    for entry in ledger:
        counts = (f"{entry.get(name, 0):,}" for name in [*names, "written"])
        table.add_row(str(entry["source"]).rpartition("/")[2], *counts)
    return table


def _lengths(store: TokenStore) -> Table:
    """The number of sequences (a prompt and one response) by length."""
    bins = dict(store.manifest["sequence_histogram"])
    longest, highest = bins.pop("longest"), max(bins.values())
    table = Table(title="tokens of a prompt and one response", title_justify="left")
    table.add_column("at most", justify="right")
    table.add_column("sequences", justify="right")
    table.add_column("", min_width=_BAR_WIDTH)
    for most, count in bins.items():
        bar = "█" * math.ceil(_BAR_WIDTH * count / highest)
        table.add_row(f"{int(most):,}", f"{count:,}", Text(bar, style="cyan"))
    table.caption = f"longest {longest:,}"
    return table


def _legend() -> Text:
    text = Text("\nEach tier has a colour: ")
    for tier, style in TIER_STYLES.items():
        text.append(tier, style=style)
        text.append(", ")
    text.append("special tokens are ").append("white on it", style="white on blue")
    text.append(", and targets of the loss are ").append("underlined", style="underline")
    return text.append(".")


def _example(store: TokenStore, example: int, number: int) -> Panel:
    columns = store.columns
    tags = {name: tag for name, tag in store.tags(example).items() if tag}
    subtitle = " · ".join([f"{name} {tag}" for name, tag in tags.items()])
    file = str(columns.source_file[example]).rpartition("/")[2]
    title = f"example {number} · {file}, row {columns.source_row[example]}"
    return Panel(
        Group(*_prompt(store, example), *_responses(store, example)),
        title=Text(title), title_align="left", subtitle=Text(subtitle), subtitle_align="left",
    )  # fmt: skip


def _prompt(store: TokenStore, example: int) -> Iterator[Text]:
    columns, tokens = store.columns, store.prompt(example)
    segments = range(*columns.segment_start[example : example + 2])
    start = 0
    for segment in segments:
        tier, length = TIERS[columns.segment_tier[segment]], int(columns.segment_length[segment])
        yield tokens_as_text(store.template, tokens[start : start + length], tier)
        start += length
    yield tokens_as_text(store.template, tokens[start:], "response")


def _responses(store: TokenStore, example: int) -> Iterator[Text]:
    columns = store.columns
    places = range(*columns.response_start[example : example + 2])
    scores = [None if np.isnan(score) else float(score) for score in columns.order_score[places]]
    desirable = [{1: True, 0: False}.get(int(mark)) for mark in columns.desirable[places]]
    best = best_response(scores, desirable)
    for k, (score, mark) in enumerate(zip(scores, desirable, strict=True)):
        notes = [f"response {k + 1} of {len(scores)}"]
        notes += [] if score is None else [f"score {score:g}"]
        notes += [] if mark is None else ["desirable" if mark else "undesirable"]
        notes += ["SFT trains this one"] if k == best else []
        yield Text(" · ".join(notes), style="dim italic")
        ids = store.response(example, k)
        yield tokens_as_text(store.template, ids, "response", style="underline")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command `python -m metaalign.data.view PATH`."""
    parser = argparse.ArgumentParser(
        prog="python -m metaalign.data.view", description="Show a token store."
    )
    parser.add_argument("path", type=Path, help="the store's folder")
    parser.add_argument(
        "--examples", type=int, default=4, metavar="N", help="number of examples to show"
    )
    parser.add_argument(
        "--example",
        type=int,
        action="append",
        metavar="NUMBER",
        help="an example to show, counted from 0",
    )
    parser.add_argument("--page", type=Path, metavar="FILE", help="write an HTML page instead")
    given = parser.parse_args(arguments)
    try:
        store = TokenStore.open(given.path)
        chosen = given.example or choose_examples(store, given.examples)
        unknown = [example for example in chosen if not 0 <= example < len(store)]
        if unknown:
            raise DataError(
                f"--example: there is no example {unknown[0]}; the last one is {len(store) - 1}"
            )
        if given.page is not None:
            write_page(store, given.page, chosen)
        else:
            Console(highlight=False).print(look(store, chosen))
    except MetaAlignError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
