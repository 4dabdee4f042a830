"""The sft and dpo jobs: everything is checked on the driver, then Ray Train runs the workers.

Of `train` only this file, devices.py and restarts.py know Ray.
"""

import logging
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from metaalign.config import DPOConfig, SFTConfig
from metaalign.errors import MetaAlignError, TrainingError
from metaalign.tracking import Run
from metaalign.train.engines.starting import start_engine
from metaalign.train.launch.devices import choose_device
from metaalign.train.launch.driver import (
    begin_run,
    prepare_task,
    result_of,
    show_plan,
    stoppable,
    track_plan,
    track_settings,
)
from metaalign.train.launch.restarts import Restarts, describe
from metaalign.train.task import Task, TrainingConfig
from metaalign.train.worker import TrainingRun

RESIZE_INTERVAL_S = 60.0

MAX_WAITS = 240
"""Waits for room for the workers, over a whole run, before it is given up. Ray's default is a
minute each."""


def run_sft(config: SFTConfig, run: Run | None = None) -> dict[str, Any]:
    """Supervised fine-tuning on the best response; what result.json holds.

    Raises:
        MetaAlignError: what is wrong, found before a worker starts, or why training stopped.
    """
    return _run(config, run)


def run_dpo(config: DPOConfig, run: Run | None = None) -> dict[str, Any]:
    """Preference training against the model's own start. Result and errors as of `run_sft`."""
    return _run(config, run)


def _run(config: TrainingConfig, run: Run | None) -> dict[str, Any]:
    task = begin_run(prepare_task(config, choose_device(config.workers)))
    numbers = show_plan(task)
    if run:
        track_settings(run, task)
        track_plan(task, numbers, run)
    workers = config.workers
    gpu = task.device_type == "cuda"
    resources = {"CPU": workers.cpus_per_worker, **({"GPU": 1} if gpu else {})}
    trainer = TorchTrainer(
        _work,
        train_loop_config={"task": task.to_plain(), "run": run.address if run else None},
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers.num_workers,
            use_gpu=gpu,
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=workers.resize_interval_s or RESIZE_INTERVAL_S,
        ),
        run_config=RunConfig(
            name=config.output,
            storage_path=config.storage,
            failure_config=FailureConfig(
                max_failures=workers.max_failures, controller_failure_limit=MAX_WAITS
            ),
            # Typed for the user's callbacks alone, it hands all others to the controller.
            callbacks=[Restarts(task.job)],  # pyright: ignore[reportArgumentType]
            logging_config=LoggingConfig(log_level="WARNING"),
            worker_runtime_env={"env_vars": {"DS_ACCELERATOR": task.device_type}},
        ),
    )
    try:
        with stoppable(task):
            outcome: Any = trainer.fit().return_value
    except ray.train.TrainingFailedError as error:
        raise TrainingError(f"{task.job}: {_cause(error)}") from error
    if "error" in outcome:
        error = outcome["error"]
        raise type(error)(f"{task.job}: {error}")
    return result_of(task, outcome)


def _work(settings: dict[str, Any]) -> dict[str, Any]:
    """The training function of every worker; the run's result, or the error that ended it.

    An error that all workers met ends the job: a restart would meet it again. A worker that fails
    alone raises, so that Ray ends the others, which may wait for it, and restarts them all from
    the last checkpoint.
    """
    task = Task.from_plain(settings["task"])
    _quiet_ray_train()
    context = ray.train.get_context()
    torch.set_num_threads(max(1, int(task.config.workers.cpus_per_worker)))
    tracker = None
    if settings["run"] and context.get_world_rank() == 0:
        tracker = Run.attach(settings["run"])
    try:
        engine = start_engine(task, get_device())
        return TrainingRun(task, engine, tracker=tracker, leaving=_leaving).run()
    except MetaAlignError as error:
        if not error.on_every_worker:
            raise
        return {"error": error}
    finally:
        if tracker:
            tracker.flush()


def _leaving() -> bool:
    """Whether a node of the run is about to be preempted. A barrier over all workers."""
    return ray.train.get_preemption_info() is not None


def _quiet_ray_train() -> None:
    """Switch off a line a worker a checkpoint. Loggers of Ray Train may be named by their file."""
    source = str(Path(ray.train.__file__).parent)
    for name in list(logging.root.manager.loggerDict):
        if name.startswith((source, "ray.train")):
            logging.getLogger(name).setLevel(logging.WARNING)


def _cause(error: ray.train.TrainingFailedError) -> str:
    """The first error of ours in a worker, or one line on what Ray met."""
    failures = getattr(error, "worker_failures", None) or {}
    for failure in failures.values():
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, MetaAlignError):
                return str(cause)
            cause = getattr(cause, "_base_exc", None) or cause.__cause__
    return describe(error)
