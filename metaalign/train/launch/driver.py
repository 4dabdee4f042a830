"""The part of a training job that runs once, before and around its workers. Does not import Ray.

It finds everything that is wrong with a run before a worker starts.
"""

import hashlib
import json
import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from metaalign.config import SFTConfig, resolve
from metaalign.errors import TrainingError
from metaalign.folders import open_folder, weights_fingerprint, write_whole
from metaalign.store.token_store import TokenStore
from metaalign.template import Template
from metaalign.tracking import Run
from metaalign.train.checkpoints.checkpoint_format import check_identity, read_manifest
from metaalign.train.checkpoints.history import newest_checkpoint
from metaalign.train.checkpoints.notices import STOP_FILE, claim, name_training, take_over
from metaalign.train.checkpoints.recipe import kept_before, write_recipe
from metaalign.train.engines.deepspeed_settings import (
    check_offload,
    check_second_cut,
    optimizer_place,
)
from metaalign.train.engines.optimizers import check_compiler, optimizer_name
from metaalign.train.launch.kernels import choose_attention, choose_dtype
from metaalign.train.launch.plan_checks import check_plan
from metaalign.train.launch.plan_numbers import PlanNumbers, count_plan
from metaalign.train.launch.plan_page import as_text, plan_page, print_page
from metaalign.train.loop.results import RESULT_FILE
from metaalign.train.model.context import context_of
from metaalign.train.model.loading import (
    check_carried,
    find_model,
    load_config_of,
    prepare_initial,
)
from metaalign.train.model.probe import choose_layout
from metaalign.train.model.vocabulary import has_new_tokens
from metaalign.train.task import (
    DeviceType,
    Materials,
    Task,
    TrainingConfig,
    gather_materials,
    identity,
    with_references,
)

INITIAL_FOLDER = "initial"
"""Link under the storage to the initial model of the last SFT run, if the run had to make it: with
random weights, or with a larger vocabulary."""

PLAN_FILE = "plan.txt"
"""Name of the file in a run's folder that holds the printed plan."""

logger = logging.getLogger(__name__)


def prepare_task(config: TrainingConfig, device_type: DeviceType) -> Task:
    """Check the whole run, and make the initial model if the run needs a new one.

    Args:
        device_type: The workers' device, which the launcher chose.

    Raises:
        MetaAlignError: something is wrong. The message names the setting, its value and the remedy.
    """
    store = TokenStore.open(resolve(config.storage, config.store))
    place = optimizer_place(config.zero, device_type)
    check_compiler(config.optimizer.name, device_type, place)
    check_offload(config.zero, device_type)
    check_second_cut(config.zero, config.workers)
    attention = choose_attention(config, device_type)
    dtype = choose_dtype(config, device_type)
    # The report's untrained model is the one that SFT starts from, whatever DPO starts from.
    name = INITIAL_FOLDER if isinstance(config, SFTConfig) else f"{config.output}_{INITIAL_FOLDER}"
    folder = Path(config.storage) / name
    initial = prepare_initial(config.model, store.template, folder, storage=config.storage)
    model_config = load_config_of(initial)
    if config.model.lora is None:
        check_carried(model_config)  # with adapters, the untrained weights stay in `initial`
    context = context_of(model_config, config.model.context)
    layout = choose_layout(
        model_config,
        config.model.layout,
        attention,
        context=context,
        budget=config.batch.budget,
    )
    task = Task(
        config=config,
        initial=str(initial),
        weights=weights_fingerprint(initial),
        context=context,
        layout=layout,
        attention=attention,
        dtype=dtype,
        device_type=device_type,
        train_vocabulary=_has_new_tokens(config, store.template),
    )
    task = with_references(task, store.template)
    materials = gather_materials(task)
    _check_run(task, materials)
    _log_task(task, materials, optimizer_name(config.optimizer.name, place))
    return task


def _has_new_tokens(config: TrainingConfig, template: Template) -> bool:
    path = config.model.path
    return path is not None and has_new_tokens(find_model(path, config.storage), template)


def _check_run(task: Task, materials: Materials) -> None:
    """Check the plan, and that the run can continue from the checkpoints in its folder."""
    check_plan(task, materials)
    newest = newest_checkpoint(task.checkpoints)
    if newest is not None:
        place = open_folder(task.checkpoints)
        check_identity(read_manifest(newest), identity(task, materials.store), place)
        return
    before = kept_before(Path(task.folder))
    if before not in (None, task.checkpoints) and newest_checkpoint(before) is not None:
        raise TrainingError(
            f"{task.folder}: the checkpoints of this run are kept in {before}, and there are none "
            f"in {task.checkpoints}; change checkpoint.storage back, or copy the checkpoints"
        )


def _log_task(task: Task, materials: Materials, optimizer: str) -> None:
    workers = task.config.workers
    logger.info(
        "%s: %d examples in %d steps, layout %s, %s, %s on %s %s worker(s)",
        task.job,
        len(materials.plan.selection),
        materials.plan.num_steps,
        task.layout,
        task.dtype,
        optimizer,
        " to ".join(str(count) for count in sorted({workers.min_workers, workers.max_workers})),
        task.device_type,
    )


def begin_run(task: Task) -> Task:
    """Take over the run's folder, write the recipe that export reads, and delete an old result.

    Returns:
        The task with its owner set.
    """
    config, folder = task.config, Path(task.folder)
    template = TokenStore.open(resolve(config.storage, config.store)).template
    recipe = {
        "job": task.job,
        "dtype": task.dtype,
        "initial": task.initial,
        "train_vocabulary": task.train_vocabulary,
        "config": config.model_dump(mode="json"),
    }
    if task.checkpoints != task.folder:
        claim(task.checkpoints, folder)
    write_recipe(folder, initial=task.initial, template=template, recipe=recipe)
    owner = take_over(folder)
    (folder / RESULT_FILE).unlink(missing_ok=True)
    return replace(task, owner=owner)


def track_settings(run: Run, task: Task) -> None:
    """Log the settings of a checked task, before it trains, in the MLflow run that it continues.

    This is a new MLflow run if the training starts anew: in another folder than the curves of the
    given run, or without a checkpoint and with other settings.
    """
    store = TokenStore.open(resolve(task.config.storage, task.config.store))
    known = [identity(task, store), name_training(task.checkpoints)]
    training = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:32]
    settings = task.config.model_dump(mode="json")
    resumes = newest_checkpoint(task.checkpoints) is not None
    run.hold_training(training, settings, resumes=resumes)
    run.log_params(settings)


def show_plan(task: Task) -> PlanNumbers:
    """Print the plan of a run that has begun, and write the page into its folder."""
    config, materials = task.config, gather_materials(task)
    numbers = count_plan(materials, config.workers.max_workers)
    place = optimizer_place(config.zero, task.device_type)
    page = plan_page(task, materials, numbers, optimizer_name(config.optimizer.name, place))
    print_page(page)
    write_whole(Path(task.folder) / PLAN_FILE, as_text(page))
    return numbers


def track_plan(task: Task, numbers: PlanNumbers, run: Run) -> None:
    """Log the numbers of `show_plan`, and the page as an artifact."""
    run.log_metrics(numbers.metrics())
    run.flush()
    run.log_artifact(Path(task.folder) / PLAN_FILE)


@contextmanager
def stoppable(task: Task) -> Iterator[None]:
    """Forward a SIGTERM, which `ray job stop` sends, to the workers, which save and return.

    A second SIGTERM has its default effect and ends the driver, because workers that wait for room
    cannot react to the first.
    """
    flag = Path(task.folder) / STOP_FILE
    flag.unlink(missing_ok=True)
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def forward(*_: object) -> None:
        flag.touch()
        signal.signal(signal.SIGTERM, before)

    before = signal.signal(signal.SIGTERM, forward)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        flag.unlink(missing_ok=True)


def result_of(task: Task, outcome: dict[str, Any]) -> dict[str, Any]:
    """The result of the run, from what the first worker returned.

    Raises:
        SystemExit: the run was stopped before its end.
    """
    if "stopped" in outcome:
        message = "%s: stopped; saved at step %d, from which it continues if submitted again"
        logger.warning(message, task.job, outcome["stopped"])
        raise SystemExit(128 + signal.SIGTERM)
    return outcome
