"""What one of several processes does in a test. `worker_pool` starts them and names the scenarios.

Each line of the standard input is one: ["whole_run", "/FOLDER"]. A "1" on the given pipe says that
it has ended well, and FOLDER/whole_run-RANK.json holds what it returned.
"""

import gc
import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from metaalign.config import DPOConfig
from metaalign.errors import StorageError, TrainingError
from metaalign.train.checkpoints.checkpoint_format import (
    load_checkpoint,
    read_manifest,
    step_folder,
)
from metaalign.train.checkpoints.history import agree_on_checkpoint
from metaalign.train.checkpoints.saving import Saver
from metaalign.train.engines.deepspeed_settings import deepspeed_settings
from metaalign.train.engines.interface import Engine
from metaalign.train.engines.starting import (
    OpenReference,
    build_policy,
    open_reference,
    start_engine,
)
from metaalign.train.loop.reference_pass import reference_logprobs
from metaalign.train.loop.training_loop import (
    GRAD_NORM,
    LOSS,
    Loss,
    Metrics,
    Reader,
    measure,
    train,
)
from metaalign.train.losses.pairs import PairLoss, SFTLoss
from metaalign.train.task import Task, gather_materials
from metaalign.train.worker import TrainingRun
from tests import loading_scenarios
from tests.plain_engine import PlainEngine

CHUNK = 16
"""Targets of a chunk: several on every worker, so that a missing one would hang."""


class CutOffError(Exception):
    """The run is cut off here."""


class CutOffRun(TrainingRun):
    """Cut off right after the checkpoint of a step."""

    stop_at: int | None = None

    def _save(self, step: int) -> None:
        super()._save(step)
        if step == self.stop_at:
            self._saver.wait()
            raise CutOffError


def curve(task: Task, engine: Engine) -> list[list[float]]:
    """Loss and gradient norm of every step, for DPO after a reference pass of its own."""
    engine.policy.chunk_targets = CHUNK
    store, plan, _ = gather_materials(task)
    reader = Reader(store, plan.selection)
    loss: Loss = SFTLoss(plan.selection, store.columns)
    if isinstance(task.config, DPOConfig):
        layout = f"{engine.world_size}-{task.config.batch.budget}-{type(engine).__name__}"
        folder = Path(task.config.storage) / "reference" / layout
        reference = reference_logprobs(engine, plan.sweep(512), reader, folder)
        loss = PairLoss(plan.selection, store.columns, reference[None], task.config.loss)
    points = []

    def after_step(step: int, metrics: Metrics) -> bool:
        assert step == len(points) + 1
        points.append([metrics[LOSS], metrics[GRAD_NORM]])
        return False

    train(
        engine,
        plan,
        reader,
        loss,
        optimizer=task.config.optimizer,
        after_step=after_step,
    )
    return points


@contextmanager
def open_plain(task: Task, device: torch.device) -> Iterator[PlainEngine]:
    """A further reference in one process without DeepSpeed."""
    yield PlainEngine(build_policy(task, None), task.config.optimizer, device)


def run_task(
    task: Task, engine: Engine, stop_at: int | None = None, opening: OpenReference | None = None
) -> dict[str, Any]:
    """A whole run; its losses by step, its result, and the final parameters' sum of squares."""
    losses: dict[int, float] = {}

    class Losses:
        def log_metrics(self, values: Mapping[str, float], step: int) -> None:
            if "train/loss" in values:
                losses[step] = values["train/loss"]

        def flush(self) -> None:
            pass

    if opening is None:
        opening = open_plain if isinstance(engine, PlainEngine) else open_reference
    run = CutOffRun(task, engine, tracker=Losses(), open_reference=opening)
    run.stop_at = stop_at
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
    """The same steps under every task's settings."""
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
        reader = Reader(store, plan.selection)
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
        reader = Reader(store, plan.selection)
        found.append(measure(engine, sweep, reader, None).logprobs.tolist())
    return found


def ask_another(tasks: list[Task], _: Path) -> Any:
    """How far another engine's pass over the same model is from the training engine's, how many
    elements it holds once it is closed, and how far its coming and going moved the first."""
    found = []
    for task in tasks:
        engine = start_engine(task, torch.device("cpu"))
        store, plan, _ = gather_materials(task)
        reader = Reader(store, plan.selection)
        before = measure(engine, plan.sweep(5), reader, None).logprobs
        with open_reference(task, torch.device("cpu")) as other:
            apart = abs(measure(other, plan.sweep(5), reader, None).logprobs - before).max()
        parameters: list[Any] = list(other.policy.parameters())
        held = sum(p.numel() + getattr(p, "ds_tensor", p).numel() for p in parameters)
        after = measure(engine, plan.sweep(5), reader, None).logprobs
        found.append([float(apart), held, float(abs(after - before).max())])
    return found


def agree(tasks: list[Task], _: Path) -> Any:
    """Which checkpoint is taken after damage to a file, and whether this worker warned of it."""
    warned, step = [], []
    for task, name in zip(tasks, ("__1_0.distcp", "__0_0.distcp"), strict=True):
        engine = start_engine(task, torch.device("cpu"))
        run_task(task, engine)
        if engine.rank == 0:
            damaged = Path(task.folder) / step_folder(6) / name
            damaged.write_bytes(damaged.read_bytes()[:-1])
        dist.barrier()
        records: list[logging.LogRecord] = []
        handler = logging.Handler()
        handler.emit = records.append  # type: ignore[method-assign]
        logger = logging.getLogger("metaalign.train.checkpoints.history")
        logger.addHandler(handler)
        folder = agree_on_checkpoint(engine, task.folder)
        logger.removeHandler(handler)
        assert folder is not None
        step.append(read_manifest(folder)["step"])
        warned.append(any("is cut short" in record.getMessage() for record in records))
    return {"warned": warned, "step": step}


def poisoned(tasks: list[Task], _: Path) -> Any:
    """What a run says of an example whose log-probs are NaN, on each worker, and where that was."""
    (task,) = tasks
    engine = start_engine(task, torch.device("cpu"))
    store, plan, _held = gather_materials(task)
    position = int(plan.step(1)[2])
    rank = [rank for rank in range(2) if position in _positions(plan.layout(1, 2), rank)]
    loss = PoisonedLoss(SFTLoss(plan.selection, store.columns), position)
    reader = Reader(store, plan.selection)
    optimizer = task.config.optimizer
    try:
        train(engine, plan, reader, loss, optimizer=optimizer, after_step=lambda *_: False)
    except TrainingError as error:
        example = int(plan.selection.example[position])
        return {"error": str(error), "rank": rank, "row": int(store.columns.source_row[example])}


def _positions(layouts: list[Any], rank: int) -> set[int]:
    return {place for micro in layouts for row in micro.bins_by_rank[rank] for place in row}


class PoisonedLoss:
    """A loss whose log-probs of one example are NaN."""

    metrics: tuple[str, ...] = ()

    def __init__(self, loss: SFTLoss, position: int) -> None:
        self.loss, self.position = loss, position

    def __call__(self, logprobs: torch.Tensor, rows: Any) -> Any:
        mine = np.append(rows.position == self.position, False)[rows.sequence]
        logprobs.data[torch.from_numpy(mine)] = float("nan")
        return self.loss(logprobs, rows)


def full_disk(tasks: list[Task], folder: Path) -> Any:
    """What a worker hears of a checkpoint on a disk that cannot take its shard."""
    engine = start_engine(tasks[0], torch.device("cpu"))
    engine.prepare_state(1)
    run = Path(json.loads((folder / "small.json").read_text())) / "run"
    saver = Saver(engine, run, identity={}, newest=1)
    if engine.rank == 1:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    saver.save(1, {})
    try:
        saver.wait()
    except StorageError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)


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
    told = int(sys.argv[1])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    known = {**vars(loading_scenarios), **globals()}
    for line in sys.stdin:
        scenario, folder = json.loads(line)
        run_scenario(known[scenario], Path(folder))
        os.write(told, b"1")


def run_scenario(scenario: Callable[[list[Task], Path], Any], folder: Path) -> None:
    """Run one scenario over the folder's tasks, and write down what it returned."""
    tasks = [Task.from_plain(plain) for plain in json.loads((folder / "tasks.json").read_text())]
    result = scenario(tasks, folder)
    (folder / f"{scenario.__name__}-{dist.get_rank()}.json").write_text(json.dumps(result))
    gc.collect()  # engines hold cycles
    dist.barrier()


if __name__ == "__main__":
    main()
