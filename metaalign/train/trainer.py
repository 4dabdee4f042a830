"""The sft and dpo jobs: everything is checked on the driver, then Ray Train runs the workers.

The only file of the room that knows Ray.
"""

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
)
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from metaalign.config import DPOConfig, SFTConfig, resolve
from metaalign.data.store import TokenStore
from metaalign.errors import MetaAlignError, TrainingError
from metaalign.tracking import Run
from metaalign.train.checkpoints import check_identity, newest_checkpoint, read_manifest
from metaalign.train.devices import choose_attention, choose_device, choose_dtype
from metaalign.train.export import write_recipe
from metaalign.train.models import (
    check_carried,
    context_of,
    load_config_of,
    prepare_initial,
    weights_fingerprint,
)
from metaalign.train.optimizers import check_compiler, optimizer_name
from metaalign.train.probe import choose_layout
from metaalign.train.results import RESULT_FILE, read_result, write_result
from metaalign.train.task import Task, TrainingConfig, gather_materials, identity
from metaalign.train.workers import TrainingRun, start_engine

INITIAL_FOLDER = "initial"
"""Folder under the storage of a model that had to be made: random, or with a larger vocabulary."""

logger = logging.getLogger(__name__)


def run_sft(config: SFTConfig, run: Run | None = None) -> dict[str, Any]:
    """Supervised fine-tuning on the best response; what result.json holds.

    Raises:
        MetaAlignError: what is wrong, found before a worker starts, or why training stopped.
    """
    return _run(config, run)


def run_dpo(config: DPOConfig, run: Run | None = None) -> dict[str, Any]:
    """Preference training against the model's own start. Result and errors as of `run_sft`."""
    return _run(config, run)


def prepare_task(config: TrainingConfig) -> Task:
    """Check all that can be wrong, and make the initial model where it must be made.

    Raises:
        MetaAlignError: names the setting, its value and the remedy.
    """
    store = TokenStore.open(resolve(config.storage, config.store))
    device_type = choose_device(config.workers)
    check_compiler(config.optimizer.name, device_type)
    attention = choose_attention(config, device_type)
    dtype = choose_dtype(config, device_type)
    # The untrained model of the report is where SFT starts, whatever DPO starts from.
    name = INITIAL_FOLDER if isinstance(config, SFTConfig) else f"{config.output}_{INITIAL_FOLDER}"
    folder = Path(config.storage) / name
    initial = prepare_initial(config.model, store.template, folder, storage=config.storage)
    model_config = load_config_of(initial)
    check_carried(model_config)
    task = Task(
        config=config,
        initial=str(initial),
        weights=weights_fingerprint(initial),
        context=context_of(model_config),
        layout=choose_layout(model_config, config.model.layout, attention),
        attention=attention,
        dtype=dtype,
        device_type=device_type,
    )
    materials = gather_materials(task)
    newest = newest_checkpoint(task.folder)
    if newest is not None:
        check_identity(read_manifest(newest), identity(task, store), Path(task.folder))
    logger.info(
        "%s: %d examples in %d steps, layout %s, %s, %s on %d %s worker(s)",
        task.job,
        len(materials.plan.selection),
        materials.plan.num_steps,
        task.layout,
        dtype,
        optimizer_name(config.optimizer.name, device_type),
        config.workers.num_workers,
        device_type,
    )
    return task


def _run(config: TrainingConfig, run: Run | None) -> dict[str, Any]:
    task = prepare_task(config)
    workers = config.workers
    gpu = task.device_type == "cuda"
    resources = {"CPU": workers.cpus_per_worker, **({"GPU": 1} if gpu else {})}
    folder = Path(task.folder)
    template = TokenStore.open(resolve(config.storage, config.store)).template
    recipe = {"job": task.job, "dtype": task.dtype, "config": config.model_dump(mode="json")}
    write_recipe(folder, initial=task.initial, template=template, recipe=recipe)
    (folder / RESULT_FILE).unlink(missing_ok=True)
    trainer = TorchTrainer(
        _work,
        train_loop_config={"task": task.to_plain(), "run": run.address if run else None},
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers.num_workers, use_gpu=gpu, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=config.output,
            storage_path=config.storage,
            failure_config=FailureConfig(max_failures=workers.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=config.checkpoint.keep),
            logging_config=LoggingConfig(log_level="WARNING"),
            worker_runtime_env={"env_vars": {"DS_ACCELERATOR": task.device_type}},
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise TrainingError(f"{task.job}: {_cause(error)}") from error
    result = read_result(task.folder)
    if result is None:
        raise TrainingError(f"{task.folder}: the workers ended without a {RESULT_FILE}")
    if "error" in result:
        raise TrainingError(f"{task.job}: {result['error']}")
    return result


def _work(settings: dict[str, Any]) -> None:
    """The training function of every worker."""
    task = Task.from_plain(settings["task"])
    _quiet_ray_train()
    context = ray.train.get_context()
    torch.set_num_threads(max(1, int(task.config.workers.cpus_per_worker)))
    engine = start_engine(task, get_device())
    tracker = None
    if settings["run"] and context.get_world_rank() == 0:
        tracker = Run.attach(settings["run"])
    track: Callable[..., None] = tracker.log_metrics if tracker else lambda *_: None
    try:
        TrainingRun(task, engine, publish=_publish, track=track).run()
    except TrainingError as error:
        # Every worker meets it alike, and would again: it ends the job without a restart.
        if engine.rank == 0:
            write_result(task.folder, {"error": str(error)})
    if tracker:
        tracker.close()


def _quiet_ray_train() -> None:
    """Switch off a line a worker a checkpoint. Loggers of Ray Train may be named by their file."""
    source = str(Path(ray.train.__file__).parent)
    for name in list(logging.root.manager.loggerDict):
        if name.startswith((source, "ray.train")):
            logging.getLogger(name).setLevel(logging.WARNING)


def _publish(name: str, write: Callable[[Path], None]) -> None:
    """Each worker reports a folder of its own; Ray merges them in the storage."""
    with tempfile.TemporaryDirectory(prefix="metaalign-") as folder:
        write(Path(folder))
        checkpoint = Checkpoint.from_directory(folder)
        ray.train.report({}, checkpoint=checkpoint, checkpoint_dir_name=name)


def _cause(error: BaseException) -> str:
    """The first error of ours in a worker, or the last line of what Ray says."""
    failures = getattr(error, "worker_failures", None) or {}
    for failure in failures.values():
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, MetaAlignError):
                return str(cause)
            cause = getattr(cause, "_base_exc", None) or cause.__cause__
    return str(error).strip().splitlines()[-1]
