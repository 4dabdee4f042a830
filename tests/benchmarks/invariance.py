"""The same run on 1, 2, 3 and 4 workers and at two budgets takes the same optimizer steps.

    python -m tests.benchmarks.invariance [--steps 20]

`max_difference` is the largest of two: between losses in nats, and between gradient norms as a
share of the norm where that is above 1. A norm is a sum of float32 rounding errors that grow with
it, and clipping divides by it, so what reaches the weights is its relative error. The absolute
differences of the norms stand beside them, without a bar.

ZeRO-3 over processes under gloo, and once one process without DeepSpeed; float32. The examples
are personas of unequal lengths, so that every rank has another number of targets.
"""

import argparse
import itertools
import tempfile
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from metaalign.config.batch import BatchConfig
from metaalign.store.token_store import TokenStore
from metaalign.train.engines.starting import build_policy
from metaalign.train.task import Task, gather_materials
from tests.benchmarks.alignment_data import persona_examples, write_store
from tests.benchmarks.report import bar, print_report
from tests.plain_engine import PlainEngine
from tests.tiny_task import ARCHITECTURE, tiny_task
from tests.worker_pool import run_workers
from tests.worker_scenarios import curve

JOBS = ("sft", "dpo")
BUDGETS = (1024, 4096)
WORLDS = (1, 2, 3, 4)
LEARNING_RATE = 1e-3
BATCH = {"global_batch_size": 6, "rows": 2, "group_by": "conversation"}
MODEL = {
    **ARCHITECTURE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "max_position_embeddings": 1024,
}
BAR = 1e-5
ALONE = "no DeepSpeed"
QUANTITIES = ("loss", "grad_norm", "grad_norm_absolute")
"""The first two are under the bar."""


def make_store(folder: Path) -> TokenStore:
    return write_store(folder, persona_examples(400))


def task_of(storage: Path, job: str, budget: int, steps: int) -> Task:
    return tiny_task(
        storage,
        make_store,
        job,
        context=1024,
        model={"architecture": MODEL},
        length={"epochs": None, "max_steps": steps},
        batch={**BATCH, "budget": budget},
        optimizer={"learning_rate": LEARNING_RATE, "weight_decay": 0.1},
    )


def all_curves(storage: Path, steps: int) -> dict[tuple[str, str], np.ndarray]:
    """By job and name of the run: (steps, 2) loss and gradient norm."""
    keys = list(itertools.product(JOBS, BUDGETS))
    tasks = [task_of(storage, job, budget, steps) for job, budget in keys]
    curves = {}
    for world in WORLDS:
        ranks = run_workers("steps", tasks, storage, world_size=world, timeout_s=3600)
        assert all(found == ranks[0] for found in ranks)
        for (job, budget), found in zip(keys, ranks[0], strict=True):
            curves[job, f"{world} at {budget}"] = np.array(found)
    for (job, budget), task in zip(keys, tasks, strict=True):
        if budget == BUDGETS[0]:
            engine = PlainEngine(build_policy(task, None), task.config.optimizer)
            curves[job, ALONE] = np.array(curve(task, engine))
    return curves


def unequal_share(task: Task) -> float:
    """Share of the micro-batches of two workers in which they have unequal numbers of targets."""
    plan = gather_materials(task).plan
    targets = [
        [sum(int(plan.selection.targets[list(row)].sum()) for row in worker) for worker in ranks]
        for step in range(plan.num_steps)
        for ranks in (micro.bins_by_rank for micro in plan.layout(step, 2))
    ]
    return sum(first != second for first, second in targets) / len(targets)


def print_table(curves: dict[tuple[str, str], np.ndarray]) -> dict[str, float]:
    """The largest difference of each run to any other; by job and quantity, of all pairs."""
    heads = [f"{job} {name.replace('_', ' ')}" for job in JOBS for name in QUANTITIES]
    table = Table("run", *heads)
    runs = list(dict.fromkeys(run for _, run in curves))
    for run in runs:
        apart = [differences(curves, job, run, runs).tolist() for job in JOBS]
        table.add_row(run, *(f"{value:.1e}" for own in apart for value in own))
    Console().print("Largest difference to any other run:", table)
    zero = [run for run in runs if run != ALONE]
    figures = {}
    for among, group in (("", runs), ("_among_zero3", zero)):
        for job in JOBS:
            largest = np.max([differences(curves, job, run, group) for run in group], axis=0)
            for name, value in zip(QUANTITIES, largest.tolist(), strict=True):
                figures[f"{job}_{name}{among}"] = value
    return figures


def differences(
    curves: dict[tuple[str, str], np.ndarray], job: str, run: str, others: list[str]
) -> np.ndarray:
    """(3,) the largest difference to any of the others, in the order of QUANTITIES."""
    own = curves[job, run]
    apart = np.abs(np.stack([curves[job, other] for other in others]) - own)
    relative = apart[..., 1] / np.maximum(1, np.abs(own[:, 1]))
    return np.stack([apart[..., 0], relative, apart[..., 1]]).max(axis=(1, 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        curves = all_curves(Path(folder), steps)
        unequal = unequal_share(task_of(Path(folder), "sft", BUDGETS[0], steps))
    figures = print_table(curves)
    barred = [figures[f"{job}_{name}"] for job in JOBS for name in QUANTITIES[:2]]
    losses = {job: curves[job, ALONE][[0, -1], 0].tolist() for job in JOBS}
    print_report(
        {
            "steps": steps,
            "learning_rate": LEARNING_RATE,
            "budgets": BUDGETS,
            "workers": WORLDS,
            "batch": BatchConfig(**BATCH).model_dump(include=set(BATCH)),
            "architecture": MODEL,
            "dtype": "float32",
        },
        {**figures, "first_and_last_loss": losses, "unequal_targets_share": unequal},
        {"max_difference": bar(max(barred), BAR, at_least=False)},
    )


if __name__ == "__main__":
    main()
