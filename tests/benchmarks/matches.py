"""Ours against TRL over a workload: TRL's fastest way is found first, then both alternate.

A way of TRL's that computes another loss or gradient at step 0 than ours is left out, and that is
printed, before anything is timed.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import trl
from rich.console import Console

from tests.benchmarks.contenders import Spec, plan_of
from tests.benchmarks.duel import Contender, check_same, duel
from tests.benchmarks.trl_trainer import DEFAULT_BATCH_SIZE
from tests.benchmarks.workloads import SHAPES, write_model, write_store

GLOBAL_BATCH_SIZE = 16
TOLERANCES = {"loss": 2e-4, "grad_norm": 5e-3}
"""At every step. Gradients are differences of what losses are sums of, and Adam's first step moves
each weight by the learning rate whichever way its gradient rounds: the norms drift apart sooner."""
FIRST_TOLERANCES = {"loss": 2e-5, "grad_norm": 2e-4}
"""At step 0, where the weights are still equal: only the order of float32 sums differs."""
CHUNK_SIZE_MB = 128
BUDGETS = {"a": 1600, "b": 3840}
"""Tokens of a row of ours by shape, or more where one example is longer: a few examples pack well,
and a row that is shorter than a few groups stores their meta-prompts more than once."""

CONSOLE = Console(stderr=True)


class Effort(NamedTuple):
    """How long is measured."""

    blocks: int
    """Taken by each side after a warm-up of one."""
    steps_per_block: int
    trials: int
    """Blocks in which TRL's ways are compared."""


FULL = Effort(blocks=7, steps_per_block=2, trials=3)
QUICK = Effort(blocks=1, steps_per_block=1, trials=1)
"""Shows that both sides work and agree; its rates say little."""


@dataclass(frozen=True)
class Match:
    """Ours against TRL over one workload."""

    job: str
    shape: str
    vocabulary: int
    ways: tuple[dict[str, Any], ...]
    """Settings of TRL's config, one of them after the other; `batch` is of its forward pass."""


def effort_asked_for(description: str | None) -> Effort:
    """What the command line says: everything, or --quick."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one short block: a trial, no measure")
    return QUICK if parser.parse_args().quick else FULL


def run_matches(
    matches: Mapping[str, Match], folder: Path, effort: Effort
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures of each match, and the settings of all."""
    figures = {}
    for name, match in matches.items():
        CONSOLE.print(f"{name}: {match}")
        figures[name] = run_match(match, folder / name, effort)
        CONSOLE.print(f"{name}: {figures[name]}")
    settings = {
        "model": "random Llama, 256 x 4",
        "global_batch_size": GLOBAL_BATCH_SIZE,
        "dtype": "float32",
        "optimizer": "torch fused AdamW, gradient norm clipped to 1",
        "threads": 2,
        "trl": trl.__version__,
        **effort._asdict(),
        "matches": {name: vars(match) for name, match in matches.items()},
    }
    return figures, settings


def run_match(match: Match, folder: Path, effort: Effort) -> dict[str, Any]:
    """Write the workload, find TRL's fastest way, and compare.

    Raises:
        AssertionError: the two sides computed different losses or gradients.
    """
    folder.mkdir()
    spec = prepare(match, folder, effort)
    with ExitStack() as stack:

        def start(side: Spec, name: str) -> Contender:
            return stack.enter_context(Contender(side, folder / f"{name}.log"))

        ours = start(spec, "ours")
        ways = [start(spec_of(spec, way), f"trl-{i}") for i, way in enumerate(match.ways)]
        for side in (ours, *ways):
            side.ready()
        for side in (ours, *ways):
            side.go(1)
        best = fastest(agreeing(ours, ways), effort)
        for way in ways:
            if way is not best:
                way.stop()
        if behind := len(best.curve.losses) - len(ours.curve.losses):
            ours.go(behind)
        found = duel(ours, best, blocks=effort.blocks, steps_per_block=effort.steps_per_block)
    check_same(*found.curves, **TOLERANCES)
    examples = GLOBAL_BATCH_SIZE * effort.steps_per_block
    return {**found.figures(examples), "trl": best.spec.options, "ours": spec.options}


def prepare(match: Match, folder: Path, effort: Effort) -> Spec:
    """Our side of the match, over a store and a model that are written for it."""
    shape = SHAPES[match.shape]
    steps = 1 + effort.steps_per_block * (effort.trials + effort.blocks + 1)
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
    budget = max(BUDGETS[match.shape], -(-longest // 64) * 64)
    return spec_with(spec, {"budget": budget, "rows": 1, "chunk_size_mb": CHUNK_SIZE_MB})


def spec_of(ours: Spec, way: Mapping[str, Any]) -> Spec:
    """TRL's side, in one way."""
    options = dict(way)
    batch = options.pop("batch", DEFAULT_BATCH_SIZE)
    options["per_device_train_batch_size"] = batch
    options["gradient_accumulation_steps"] = GLOBAL_BATCH_SIZE // batch
    return spec_with(ours, options, side="trl")


def spec_with(spec: Spec, options: dict[str, Any], **changed: Any) -> Spec:
    return Spec(**{**vars(spec), **changed, "options": options})


def agreeing(ours: Contender, ways: Sequence[Contender]) -> list[Contender]:
    """The ways whose loss and gradient norm at step 0 are ours; the others are stopped.

    Raises:
        AssertionError: none of them are.
    """
    kept = []
    for way in ways:
        try:
            check_same(ours.curve, way.curve, **FIRST_TOLERANCES)
        except AssertionError as difference:
            CONSOLE.print(f"left out: {way.spec.options}: {difference}")
            way.stop()
        else:
            kept.append(way)
    assert kept, "no way of TRL's computes the loss and gradient of ours at step 0"
    return kept


def fastest(ways: Sequence[Contender], effort: Effort) -> Contender:
    """The way of the smallest median seconds of blocks that all ways take in turn."""
    if len(ways) == 1:
        return ways[0]
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(effort.trials):
        for own, way in zip(seconds, ways, strict=True):
            own.append(way.go(effort.steps_per_block))
    medians = [statistics.median(own) for own in seconds]
    for median, way in zip(medians, ways, strict=True):
        CONSOLE.print(f"{median:.2f} s a block: {way.spec.options}")
    return ways[medians.index(min(medians))]
