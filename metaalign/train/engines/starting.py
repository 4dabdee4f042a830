"""Starts the engines over a task's policy and its further references. Does not import Ray."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from metaalign.train.engines.agreement import all_or_none, from_first
from metaalign.train.engines.deepspeed_settings import deepspeed_settings
from metaalign.train.engines.interface import ForwardEngine
from metaalign.train.engines.zero import (
    FrozenEngine,
    ZeroEngine,
    join_deepspeed,
    quiet_deepspeed,
)
from metaalign.train.model.adapters import add_adapters
from metaalign.train.model.loading import check_weights, load_config_of, load_policy
from metaalign.train.model.policy import Policy
from metaalign.train.model.probe import check_on_device
from metaalign.train.task import Task

OpenReference = Callable[[Task, torch.device], AbstractContextManager[ForwardEngine]]


def start_engine(task: Task, device: torch.device) -> ZeroEngine:
    """The engine over the task's policy. `torch.distributed` must be initialized.

    Raises:
        ModelError: the initial model is no longer what the driver found.
        LayoutError: on this device, what the driver chose is not exact.
    """
    quiet_deepspeed()
    join_deepspeed()
    if device.type == "cuda":
        # NCCL uses the current device, which under Ray is the node's first until it is set.
        torch.cuda.set_device(device)
    from_first(lambda: check_weights(task.initial, task.weights))
    if device.type != "cpu":  # what a CPU runs, the driver has tried
        from_first(lambda: check_models(task, device))
    config = task.config
    settings = deepspeed_settings(
        config.zero,
        max_grad_norm=config.optimizer.max_grad_norm,
        dtype=task.torch_dtype,
        device_type=task.device_type,
    )
    return ZeroEngine(
        build_policy(task, settings),
        zero=config.zero,
        optimizer=config.optimizer,
        dtype=task.torch_dtype,
        device=device,
    )


def check_models(task: Task, device: torch.device) -> None:
    """Is each model exact in the task's layout with the kernel, device and precision that train?

    Raises:
        LayoutError: one is not; names the layer type, and the setting to change.
    """
    for source in (task.initial, *(reference.source for reference in task.references)):
        check_on_device(
            load_config_of(source),
            task.layout,
            task.attention,
            context=task.context,
            budget=task.config.batch.budget,
            device=device,
            dtype=task.torch_dtype,
        )


def build_policy(task: Task, deepspeed: dict[str, Any] | None) -> Policy:
    """The policy of a task, at its start. Every worker calls it.

    Raises:
        ModelError: a worker's node lacks the initial model.
    """
    all_or_none(lambda: load_config_of(task.initial))  # loading under ZeRO-3 is collective
    model = task.config.model
    adapt = None
    if model.lora is not None:
        adapt = partial(
            add_adapters,
            config=model.lora,
            train_vocabulary=task.train_vocabulary,
            seed=model.seed,
        )
    return load_policy(
        task.initial,
        deepspeed=deepspeed,
        dtype=task.torch_dtype,
        attention=task.attention,
        layout=task.layout,
        chunk_size_mb=task.config.batch.chunk_size_mb,
        activation_checkpointing=model.activation_checkpointing,
        adapt=adapt,
    )


@contextmanager
def open_reference(task: Task, device: torch.device) -> Iterator[ForwardEngine]:
    """An engine over a further reference. Its memory is released on exit.

    Args:
        task: A task whose initial model is that reference.
    """
    model = task.config.model.model_copy(update={"lora": None})
    # DeepSpeed 0.19 makes the groups of hpZ partitions once per process, for the training engine.
    zero = task.config.zero.model_copy(
        update={"offload_optimizer": None, "hpz_partition_size": None}
    )
    task = replace(task, config=task.config.model_copy(update={"model": model}))
    settings = deepspeed_settings(
        zero, max_grad_norm=None, dtype=task.torch_dtype, device_type=task.device_type
    )
    policy = build_policy(task, settings)
    engine = FrozenEngine(policy, zero=zero, dtype=task.torch_dtype, device=device)
    try:
        yield engine
    finally:
        engine.release()
