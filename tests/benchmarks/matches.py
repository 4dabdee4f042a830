"""Ours against TRL over a workload: TRL's fastest way is found first, then both alternate."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trl
from rich.console import Console

from tests.benchmarks.contenders import Spec, plan_of
from tests.benchmarks.duel import Contender, Duel, check_same, duel
from tests.benchmarks.workloads import SHAPES, write_model, write_store

GLOBAL_BATCH_SIZE = 16
STEPS_PER_BLOCK = 2
BLOCKS = 7
TOLERANCE = 2e-4
"""Relative; between the losses of the two sides, at every step."""
CHUNK_SIZE_MB = 32
MIN_BUDGET = 1280
"""Tokens of a row of ours; two or three examples pack well."""

CONSOLE = Console(stderr=True)


@dataclass(frozen=True)
class Match:
    """Ours against TRL over one workload."""

    job: str
    shape: str
    vocabulary: int
    ways: tuple[dict[str, Any], ...]
    """Settings of TRL's config, one of them after the other; `batch` is of its forward pass."""


def run_matches(
    matches: Mapping[str, Match], folder: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures of each match, and the settings of all."""
    figures = {}
    for name, match in matches.items():
        CONSOLE.print(f"{name}: {match}")
        figures[name] = run_match(match, folder / name)
        CONSOLE.print(f"{name}: {figures[name]}")
    settings = {
        "model": "random Llama, 256 x 4",
        "global_batch_size": GLOBAL_BATCH_SIZE,
        "dtype": "float32",
        "optimizer": "torch fused AdamW, gradient norm clipped to 1",
        "threads": 2,
        "trl": trl.__version__,
        "blocks": BLOCKS,
        "steps_per_block": STEPS_PER_BLOCK,
        "matches": {name: vars(match) for name, match in matches.items()},
    }
    return figures, settings


def run_match(match: Match, folder: Path) -> dict[str, Any]:
    """Write the workload, find TRL's fastest way, and compare.

    Raises:
        AssertionError: the two sides computed different losses.
    """
    folder.mkdir()
    ours = prepare(match, folder)
    ways = [spec_of(ours, way) for way in match.ways]
    best = ways[0] if len(ways) == 1 else fastest(ways, folder)
    found: Duel = duel(ours, best, folder, blocks=BLOCKS, steps_per_block=STEPS_PER_BLOCK)
    check_same(found, tolerance=TOLERANCE)
    examples = GLOBAL_BATCH_SIZE * STEPS_PER_BLOCK
    return {**found.figures(examples), "trl": best.options, "ours": ours.options}


def prepare(match: Match, folder: Path) -> Spec:
    """Our side of the match, over a store and a model that are written for it."""
    shape, steps = SHAPES[match.shape], STEPS_PER_BLOCK * (BLOCKS + 1) + 1
    store, model = folder / "store", folder / "model"
    groups = GLOBAL_BATCH_SIZE * (steps + 1) // shape.queries
    write_store(store, shape, groups=groups, vocabulary=match.vocabulary)
    write_model(model, vocabulary=match.vocabulary)
    spec = Spec(
        side="ours",
        job=match.job,
        store=str(store),
        model=str(model),
        steps=steps,
        global_batch_size=GLOBAL_BATCH_SIZE,
        group_by="meta_prompt" if shape.queries > 1 else "example",
    )
    longest = int(plan_of(spec)[1].selection.tokens.max())
    budget = max(MIN_BUDGET, -(-longest // 64) * 64)
    return spec_with(spec, {"budget": budget, "rows": 1, "chunk_size_mb": CHUNK_SIZE_MB})


def spec_of(ours: Spec, way: Mapping[str, Any]) -> Spec:
    """TRL's side, in one way."""
    options = dict(way)
    batch = options.pop("batch", GLOBAL_BATCH_SIZE)
    options["per_device_train_batch_size"] = batch
    options["gradient_accumulation_steps"] = GLOBAL_BATCH_SIZE // batch
    return spec_with(ours, options, side="trl")


def spec_with(spec: Spec, options: dict[str, Any], **changed: Any) -> Spec:
    return Spec(**{**vars(spec), **changed, "options": options})


def fastest(ways: Sequence[Spec], folder: Path) -> Spec:
    """The way of the smallest median seconds of blocks that all ways take in turn."""
    sides = [Contender(spec, folder / f"way-{number}.log") for number, spec in enumerate(ways)]
    seconds: list[list[float]] = [[] for _ in sides]
    try:
        for side in sides:
            side.ready()
            side.go(1)
        for _ in range(3):
            for own, side in zip(seconds, sides, strict=True):
                own.append(side.go(STEPS_PER_BLOCK)["seconds"])
    finally:
        for side in sides:
            side.stop()
    medians = [statistics.median(own) for own in seconds]
    CONSOLE.print(f"TRL's ways, seconds a block: {[round(each, 2) for each in medians]}")
    return ways[medians.index(min(medians))]
