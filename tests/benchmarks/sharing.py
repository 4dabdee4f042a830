"""What rows of MetaAlign data really share, how full they are, and what planning them costs.

    python -m tests.benchmarks.sharing [--steps 3]

Shuffled (group_by example) against grouped data, at a budget of 4,096, in steps of eight full rows
a worker or more; steps that hold less do not count. The bar is on the emptiest of these steps, of
any data, grouping and number of workers. Beside it stands, without a bar, how full rows are that
are as long as a multiple of FlexAttention's blocks of 128.

Planning is timed twice: a step of 64 pairs beside the step itself, under a bar; and the layout of a
step of so many pairs a worker on 8 and 64 of them, which each worker does for itself.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from metaalign.config.sections import OptimizerConfig
from metaalign.data.formats.personas import read_personas
from metaalign.data.sources.options import SourceOptions
from metaalign.data.sources.records import read_records
from metaalign.examples import Example
from metaalign.steps.plan import LENGTH_MULTIPLE, Packing, Plan
from metaalign.steps.selection import Selection, ranges, select_ranked
from metaalign.steps.trees import build_rows, measure_forest
from metaalign.store.token_store import TokenStore
from metaalign.train.engines.starting import build_policy
from metaalign.train.model.attention import BLOCK
from metaalign.train.model.policy import to_tensors
from tests.benchmarks.alignment_data import persona_examples, recipe_examples, write_store
from tests.benchmarks.report import bar, print_report
from tests.conftest import SHARED_DATA
from tests.plain_engine import PlainEngine
from tests.tiny_task import ARCHITECTURE, tiny_task

BUDGET = 4096
ROWS = 8
CONTEXT = 1024
WORLDS = (1, 2, 3, 4, 8)
GROUPINGS = ("example", "conversation", "meta_prompt")
MODEL = {
    **ARCHITECTURE,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "max_position_embeddings": CONTEXT,
}
FILL_BAR, PLANNING_BAR = 0.95, 0.05
PLANNED_WORLDS = (8, 64)
PAIRS_A_WORKER = 64


class Measured(NamedTuple):
    """Of the steps of one store, grouping and number of workers."""

    examples: float
    """In a step, on average."""
    fill: float
    """Tokens over rows times their planned length, of all steps together."""
    least_fill: float
    """Of the emptiest step."""
    fill_in_blocks: float
    """As `fill`, of rows whose length is a multiple of 128."""
    sharing: float
    """Tokens of all sequences over tokens in the rows."""


def sources() -> dict[str, Callable[[], Sequence[Example]]]:
    """The data sets; the public one where shared/data lies beside the checkout."""
    made: dict[str, Callable[[], Sequence[Example]]] = {
        "recipes": partial(recipe_examples, 12_000),
        "long personas": partial(persona_examples, 6_000),
    }
    files = sorted((SHARED_DATA / "personas").glob("*.jsonl"))
    if files:
        made["public personas"] = lambda: [
            example
            for file in files
            for example in read_personas(read_records(file), str(file), SourceOptions()).examples
        ]
    return made


def plan_of(store: TokenStore, group_by: Any, batch: int) -> Plan:
    selection = select_ranked(store.columns, split="train", context=CONTEXT, group_by=group_by)
    packing = packing_of(store, selection)
    return Plan(packing, global_batch_size=batch, seed=0, epochs=None, max_steps=9)


def packing_of(store: TokenStore, selection: Selection, multiple: int = LENGTH_MULTIPLE) -> Packing:
    return Packing(
        selection,
        partial(measure_forest, store),
        budget=BUDGET,
        rows=ROWS,
        layout="tree",
        length_multiple=multiple,
    )


def full_steps(store: TokenStore, group_by: str, world: int, count: int) -> list[np.ndarray]:
    """Positions of `count` steps whose tokens alone are eight full rows a worker, hardly more.

    None at all where the store has too few.
    """
    batch, wanted = 64, 8 * BUDGET * world
    while True:
        plan = plan_of(store, group_by, batch)
        if len(plan.step(0)) > len(plan.selection):
            return []
        steps = [plan.step(step) for step in range(min(count + 2, plan.num_steps))]
        sizes = [measure_forest(store, plan.selection, each).size for each in steps]
        full = [each for each, size in zip(steps, sizes, strict=True) if size >= wanted]
        if len(full) >= count:
            return full[:count]
        batch = max(batch + 1, int(1.02 * batch * wanted / min(sizes[:count])))


def measure(store: TokenStore, group_by: str, world: int, *, steps: int) -> Measured | None:
    """None where the store has too few examples for so many workers."""
    found = full_steps(store, group_by, world, steps)
    if not found:
        return None
    selection = plan_of(store, group_by, 1).selection
    rooms = np.array(
        [
            [room(store, selection, positions, world, multiple) for positions in found]
            for multiple in (LENGTH_MULTIPLE, BLOCK)
        ]
    )
    real, own_room = rooms[0].T
    in_blocks = rooms[1].sum(0)
    flat = ranges(selection.response_start, np.concatenate(found))[0]
    return Measured(
        examples=float(np.mean([len(positions) for positions in found])),
        fill=float(real.sum() / own_room.sum()),
        least_fill=float((real / own_room).min()),
        fill_in_blocks=float(in_blocks[0] / in_blocks[1]),
        sharing=float(selection.sequence_length[flat].sum() / real.sum()),
    )


def room(
    store: TokenStore, selection: Selection, positions: np.ndarray, world: int, multiple: int
) -> tuple[int, int]:
    """Tokens of a step, and those that its rows have room for."""
    real = size = 0
    for micro in packing_of(store, selection, multiple).lay_out(positions, world):
        for rank in range(world):
            rows = build_rows(store, selection, micro, rank)
            real += rows.real_tokens
            size += rows.tokens.size
    return real, size


def planning_ms(store: TokenStore, world: int, *, steps: int) -> float:
    """Of one worker: the layout of a step and its own rows."""
    plan = plan_of(store, "example", PAIRS_A_WORKER * world)
    seconds = []
    for step in range(steps):
        begun = time.perf_counter()
        for micro in plan.layout(step, world):
            build_rows(store, plan.selection, micro, 0)
        seconds.append(time.perf_counter() - begun)
    return 1000 * statistics.median(seconds)


def planning_share(storage: Path, store: TokenStore, *, steps: int) -> dict[str, float]:
    """Layout and rows of a step of 64 pairs beside the step of a small Llama on one core."""
    task = tiny_task(
        storage, lambda _: store, "dpo", context=CONTEXT, model={"architecture": MODEL}
    )
    engine = PlainEngine(build_policy(task, None), OptimizerConfig())
    selection = select_ranked(store.columns, split="train", context=CONTEXT)
    packing = Packing(selection, partial(measure_forest, store), budget=1024, rows=8, layout="tree")
    plan = Plan(packing, global_batch_size=64, seed=0, epochs=None, max_steps=steps)
    planning = computing = 0.0
    for step in range(steps):
        begun = time.perf_counter()
        batches = [build_rows(store, selection, micro, 0) for micro in plan.layout(step, 1)]
        planned = time.perf_counter()
        for rows in batches:
            engine.backward(engine.forward(to_tensors(rows)).sum() / 1e6)
        engine.step(1e-5)
        planning += planned - begun
        computing += time.perf_counter() - planned
    return {
        "planning_ms": 1000 * planning / steps,
        "step_ms": 1000 * computing / steps,
        "tokens_of_a_sequence": float(selection.sequence_length.mean()),
    }


def figures_of(stores: dict[str, TokenStore], steps: int) -> tuple[dict[str, Any], float]:
    """Sharing and fill by data, grouping and number of workers, shown as a table too; and the
    fill of the emptiest step of all."""
    table = Table("data", "group_by", "workers", "examples", "sharing", "fill", "least", "in 128s")
    figures: dict[str, Any] = {"sharing": {}, "least_fill": {}, "fill_in_blocks_of_128": {}}
    for (name, store), group_by in itertools.product(stores.items(), GROUPINGS):
        case = f"{name}, {group_by}"
        found = {world: measure(store, group_by, world, steps=steps) for world in WORLDS}
        filled = {world: each for world, each in found.items() if each is not None}
        assert filled, f"{name} does not fill eight rows"
        for world, each in filled.items():
            shown = (each.sharing, each.fill, each.least_fill, each.fill_in_blocks)
            numbers = (f"{value:.3f}" for value in shown)
            table.add_row(name, group_by, str(world), f"{each.examples:.0f}", *numbers)
        figures["sharing"][case] = round(filled[1].sharing, 3)
        figures["least_fill"][case] = {
            world: round(each.least_fill, 4) for world, each in filled.items()
        }
        figures["fill_in_blocks_of_128"][case] = {
            world: round(each.fill_in_blocks, 4) for world, each in filled.items()
        }
    Console().print(table)
    least = min(value for case in figures["least_fill"].values() for value in case.values())
    return figures, least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        stores = {
            name: write_store(Path(folder) / name, make()) for name, make in sources().items()
        }
        figures, least = figures_of(stores, steps)
        personas = stores["long personas"]
        timing = planning_share(Path(folder), personas, steps=3)
        planned = {world: planning_ms(personas, world, steps=steps) for world in PLANNED_WORLDS}
    print_report(
        {"budget": BUDGET, "rows": ROWS, "workers": WORLDS, "steps": steps, "architecture": MODEL},
        {
            **figures,
            **timing,
            "pairs_a_worker": PAIRS_A_WORKER,
            "planning_ms_by_workers": {world: round(value) for world, value in planned.items()},
        },
        {
            "fill": bar(least, FILL_BAR, at_least=True),
            "planning_share": bar(
                timing["planning_ms"] / timing["step_ms"], PLANNING_BAR, at_least=False
            ),
        },
    )


if __name__ == "__main__":
    main()
