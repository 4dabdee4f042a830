"""What one of several processes does in a test: `python -m tests.worker_scenarios NAME FOLDER`."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from metaalign.train.checkpoints import load_checkpoint
from metaalign.train.engines import Engine
from metaalign.train.loop import GRAD_NORM, LOSS, Metrics, Reader, measure, train
from metaalign.train.losses import SFTLoss
from metaalign.train.task import Task, gather_materials
from metaalign.train.workers import TrainingRun, build_policy, publish_into, start_engine
from metaalign.train.zero import deepspeed_settings

CHUNK = 16
"""Targets of a chunk: several on every worker, so that a missing one would hang."""


class CutOffError(Exception):
    """The run is cut off here."""


def curve(task: Task, engine: Engine) -> list[list[float]]:
    """Loss and gradient norm of every SFT step."""
    engine.policy.chunk_targets = CHUNK
    store, plan, _ = gather_materials(task)
    points = []

    def log(step: int, metrics: Metrics) -> None:
        assert step == len(points) + 1
        points.append([metrics[LOSS], metrics[GRAD_NORM]])

    train(
        engine,
        plan,
        Reader(store, plan.selection, task.config.batch.budget),
        SFTLoss(plan.selection, store.columns),
        optimizer=task.config.optimizer,
        log=log,
        save=lambda _: None,
        measure=lambda: None,
    )
    return points


def run_task(task: Task, engine: Engine, stop_at: int | None = None) -> dict[str, Any]:
    """A whole run; its losses by step, its result, and the final parameters' sum of squares."""
    losses: dict[int, float] = {}

    def track(metrics: dict[str, float], step: int) -> None:
        if "train/loss" in metrics:
            losses[step] = metrics["train/loss"]

    keep = publish_into(task.folder, task.config.checkpoint.keep)

    def publish(name: str, write: Callable[[Path], None]) -> None:
        keep(name, write)
        if stop_at is not None and name.endswith(str(stop_at)):
            raise CutOffError

    run = TrainingRun(task, engine, publish=publish, track=track)
    try:
        result = run.run()
    except CutOffError:
        result = {}
    return {"losses": losses, "result": result}


def digest(engine: Engine) -> list[list[float]]:
    """Every parameter and optimizer state of this worker, in full."""
    keys = (None, *engine.state_keys())
    return [engine.shard(name, key).tolist() for key in keys for name in engine.shapes()]


def steps(tasks: list[Task], _: Path) -> Any:
    """The same SFT steps under every task's settings."""
    return [curve(task, start_engine(task, torch.device("cpu"))) for task in tasks]


def resume(tasks: list[Task], _: Path) -> Any:
    """The first task in one go; the second cut off after step 3 and taken up again."""
    whole, broken = tasks
    engines = [start_engine(task, torch.device("cpu")) for task in (whole, broken, broken)]
    first = run_task(whole, engines[0])
    before = run_task(broken, engines[1], stop_at=3)
    after = run_task(broken, engines[2])
    same = [digest(engines[0]) == digest(engines[2])]
    return {"whole": first, "before": before, "after": after, "same": same}


def save_and_load(tasks: list[Task], _: Path) -> Any:
    """Whether every task's state after a run comes back whole into a fresh engine."""
    found = []
    for task in tasks:
        engine = start_engine(task, torch.device("cpu"))
        run_task(task, engine)
        fresh = start_engine(task, torch.device("cpu"))
        load_checkpoint(fresh, Path(task.folder) / "step-0000006")
        store, plan, _ = gather_materials(task)
        reader = Reader(store, plan.selection, task.config.batch.budget)
        logprobs = [
            measure(each, plan.sweep(5), reader, None).logprobs.tolist() for each in (engine, fresh)
        ]
        found.append(digest(engine) == digest(fresh) and logprobs[0] == logprobs[1])
    return found


def load(tasks: list[Task], _: Path) -> Any:
    """A checkpoint that another number of workers wrote, under every task's ZeRO stage."""
    found = []
    for task in tasks:
        engine = start_engine(task, torch.device("cpu"))
        load_checkpoint(engine, Path(task.folder) / "step-0000003")
        store, plan, _ = gather_materials(task)
        sweep = plan.sweep(5)
        reader = Reader(store, plan.selection, task.config.batch.budget)
        found.append(measure(engine, sweep, reader, None).logprobs.tolist())
    return found


def whole_run(tasks: list[Task], _: Path) -> Any:
    """A whole run of every task."""
    return [run_task(task, start_engine(task, torch.device("cpu"))) for task in tasks]


def construct(tasks: list[Task], _: Path) -> Any:
    """Elements that this worker holds right after construction, and those of the model."""
    found = []
    for task in tasks:
        settings = deepspeed_settings(
            task.config.zero, max_grad_norm=None, dtype=torch.float32, device_type="cpu"
        )
        parameters: list[Any] = list(build_policy(task, settings).parameters())
        found.append(
            {
                "whole": sum(parameter.numel() for parameter in parameters),
                "own": sum(parameter.ds_tensor.numel() for parameter in parameters),
                "model": sum(parameter.ds_numel for parameter in parameters),
            }
        )
    return found


def main() -> None:
    scenario, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    tasks = [Task.from_plain(plain) for plain in json.loads((folder / "tasks.json").read_text())]
    result = globals()[scenario](tasks, folder)
    (folder / f"{scenario}-{dist.get_rank()}.json").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
