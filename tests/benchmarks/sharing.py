"""What rows of MetaAlign data really share, how full they are, and what planning them costs.

    python -m tests.benchmarks.sharing [--steps 3]

Shuffled (group_by example) against grouped data, at a budget of 4,096, in steps of eight full rows
a worker or more. The last figure is the planning of a step of 64 pairs beside the step itself.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from metaalign.config.sections import OptimizerConfig
from metaalign.data.files import Reading
from metaalign.data.personas import read_personas
from metaalign.data.store import TokenStore
from metaalign.examples import Example
from metaalign.steps.plan import Packing, Plan
from metaalign.steps.selection import ranges, select_ranked
from metaalign.steps.trees import build_rows, measure_forest
from metaalign.train.attention import BLOCK
from metaalign.train.engines import PlainEngine
from metaalign.train.logprobs import to_tensors
from metaalign.train.starting import build_policy
from tests.benchmarks.alignment_data import persona_examples, recipe_examples, write_store
from tests.benchmarks.report import bar, print_report
from tests.conftest import SHARED_DATA
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


class Measured(NamedTuple):
    """Of the steps of one store, grouping and number of workers."""

    examples: float
    """In a step, on average."""
    fill: float
    """Tokens over rows times their planned length, of all steps together."""
    least_fill: float
    """Of the emptiest step."""
    sharing: float
    """Tokens of all sequences over tokens in the rows."""


def sources() -> dict[str, Callable[[], Sequence[Example]]]:
    """The data sets; the public one where shared/data lies beside the checkout."""
    made = {
        "recipes": partial(recipe_examples, 12_000),
        "long personas": partial(persona_examples, 6_000),
    }
    files = sorted((SHARED_DATA / "personas").glob("*.jsonl"))
    if files:
        made["public personas"] = lambda: [
            example for file in files for example in read_personas(file, Reading()).examples
        ]
    return made


def plan_of(store: TokenStore, group_by: Any, batch: int, multiple: int = 8) -> Plan:
    selection = select_ranked(store.columns, split="train", context=CONTEXT, group_by=group_by)
    packing = Packing(
        selection,
        partial(measure_forest, store),
        budget=BUDGET,
        rows=ROWS,
        layout="tree",
        length_multiple=multiple,
    )
    return Plan(packing, global_batch_size=batch, seed=0, epochs=None, max_steps=9)


def full_batch(store: TokenStore, group_by: str, world: int) -> int | None:
    """Examples whose forest alone is eight rows a worker, as tokens go in the first step.

    None where the store has too few.
    """
    batch, wanted = 64, 8 * BUDGET * world
    while True:
        plan = plan_of(store, group_by, batch)
        size = measure_forest(store, plan.selection, plan.step(0)).size
        if len(plan.step(0)) > len(plan.selection):
            return None
        if size >= wanted:
            return batch
        batch = max(batch + 1, int(1.02 * batch * wanted / size))


def measure(
    store: TokenStore, group_by: str, world: int, *, steps: int, multiple: int = 8
) -> Measured | None:
    """None where the store has too few examples for so many workers."""
    batch = full_batch(store, group_by, world)
    if batch is None:
        return None
    plan = plan_of(store, group_by, batch, multiple)
    selection = plan.selection
    fills, examples, tokens, stored, all_room = [], 0, 0, 0, 0
    for step in range(steps):
        positions = plan.step(step)
        real = room = 0
        for micro in plan.layout(step, world):
            for rank in range(world):
                rows = build_rows(store, selection, micro, rank)
                real += rows.real_tokens
                room += rows.tokens.size
        fills.append(real / room)
        examples += len(positions)
        tokens += int(
            selection.sequence_length[ranges(selection.response_start, positions)[0]].sum()
        )
        stored += real
        all_room += room
    return Measured(examples / steps, stored / all_room, min(fills), tokens / stored)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    table = Table(
        "data", "group_by", "workers", "examples", "sharing", "fill", "least step", "of 128s"
    )
    sharing, fills, least, blocks = {}, [], [], []
    with tempfile.TemporaryDirectory() as folder:
        stores = {
            name: write_store(Path(folder) / name, make()) for name, make in sources().items()
        }
        for (name, store), group_by in itertools.product(stores.items(), GROUPINGS):
            found = {world: measure(store, group_by, world, steps=steps) for world in WORLDS}
            filled = {world: each for world, each in found.items() if each is not None}
            in_blocks = measure(store, group_by, 1, steps=steps, multiple=BLOCK)
            assert in_blocks is not None, f"{name} does not fill eight rows"
            one, fill = filled[1], min(each.fill for each in filled.values())
            emptiest = min(each.least_fill for each in filled.values())
            shown = (one.sharing, fill, emptiest, in_blocks.fill)
            workers = " ".join(map(str, filled))
            table.add_row(
                name, group_by, workers, f"{one.examples:.0f}", *(f"{each:.3f}" for each in shown)
            )
            sharing[f"{name}, {group_by}"] = round(one.sharing, 3)
            fills.append(fill)
            least.append(emptiest)
            blocks.append(in_blocks.fill)
        timing = planning_share(Path(folder), stores["long personas"], steps=3)
    Console().print(table)
    print_report(
        {"budget": BUDGET, "rows": ROWS, "workers": WORLDS, "steps": steps, "architecture": MODEL},
        {
            "sharing": sharing,
            "least_fill_of_a_step": min(least),
            "fill_in_blocks_of_128": min(blocks),
            **timing,
        },
        {
            "fill": bar(min(fills), FILL_BAR, at_least=True),
            "planning_share": bar(
                timing["planning_ms"] / timing["step_ms"], PLANNING_BAR, at_least=False
            ),
        },
    )


if __name__ == "__main__":
    main()
