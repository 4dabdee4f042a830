"""Scenarios of `worker_scenarios` on what a worker reads, when, and what it lacks."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from metaalign.errors import MetaAlignError
from metaalign.train.checkpoints.history import saved_steps
from metaalign.train.checkpoints.notices import take_over
from metaalign.train.checkpoints.saving import Saver
from metaalign.train.engines.agreement import from_first
from metaalign.train.engines.deepspeed_settings import deepspeed_settings
from metaalign.train.engines.starting import build_policy, start_engine
from metaalign.train.engines.zero import join_deepspeed
from metaalign.train.task import Task
from metaalign.train.worker import TrainingRun

CPU = torch.device("cpu")


def memory_bytes(key: str) -> int:
    """Of this process: VmRSS is what it holds, VmHWM the most that it ever held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def peak_of_loading(tasks: list[Task], _: Path) -> Any:
    """What this worker holds at most while it loads a model, above what it held before.

    A tiny model comes first, so that what libraries and collectives take once is not counted.
    """
    join_deepspeed()
    found = {}
    for task in tasks:
        settings = deepspeed_settings(
            task.config.zero, max_grad_norm=None, dtype=torch.float32, device_type="cpu"
        )
        dist.barrier()
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        before = memory_bytes("VmRSS:")
        policy = build_policy(task, settings)
        parameters: list[Any] = list(policy.parameters())
        found = {
            "peak": memory_bytes("VmHWM:") - before,
            "held": memory_bytes("VmRSS:") - before,
            "own": 4 * sum(parameter.ds_tensor.numel() for parameter in parameters),
            "model": 4 * sum(parameter.ds_numel for parameter in parameters),
        }
    return found


def start_with_another_model(tasks: list[Task], _: Path) -> Any:
    """What a worker says of an initial model that is not the task's."""
    try:
        start_engine(tasks[0], CPU)
    except MetaAlignError as error:
        return str(error)


def save_out_of_sight(tasks: list[Task], folder: Path) -> Any:
    """What a worker hears where the second worker's storage is a disk of its own."""
    engine = start_engine(tasks[0], CPU)
    engine.prepare_state(1)
    storage = folder / f"disk-{engine.rank}"
    saver = Saver(engine, storage / "run", identity={}, newest=1)
    saver.save(1, {})
    try:
        saver.wait()
    except MetaAlignError as error:
        return [type(error).__name__, str(error), saved_steps(storage / "run")]


def save_after_another_took_over(tasks: list[Task], folder: Path) -> Any:
    """What a worker hears of its second checkpoint, before which the folder got another owner."""
    engine = start_engine(tasks[0], CPU)
    engine.prepare_state(1)
    (folder / "run").mkdir(exist_ok=True)
    owner = from_first(lambda: take_over(folder / "run"))
    saver = Saver(engine, folder / "run", identity={}, newest=2, owner=owner)
    saver.save(1, {})
    saver.wait()
    dist.barrier()
    (folder / "run" / "OWNER").write_text("another")
    saver.save(2, {})
    try:
        saver.wait()
    except MetaAlignError as error:
        return [type(error).__name__, str(error), saved_steps(folder / "run")]


def lacking(tasks: list[Task], folder: Path) -> Any:
    """What a worker raises in each task, whether all raise it, and after how many seconds.

    One worker's node sees another storage: without a store, a model, the first one's reference, or
    room for a reference.
    """
    lame = [1, 1, 1, 0]
    found = []
    for task, rank, storage in zip(tasks, lame, sorted(folder.glob("lame-*")), strict=True):
        engine_task = task
        if dist.get_rank() == rank:
            config = task.config.model_copy(update={"storage": str(storage)})
            task = replace(task, config=config)
            engine_task = replace(task, initial=str(storage / Path(task.initial).name))
        began = time.monotonic()
        try:
            engine = start_engine(engine_task, CPU)
            TrainingRun(task, engine, tracker=None).run()
        except (MetaAlignError, OSError) as error:
            everywhere = getattr(error, "on_every_worker", None)
            found.append([type(error).__name__, str(error), everywhere, time.monotonic() - began])
    return found
