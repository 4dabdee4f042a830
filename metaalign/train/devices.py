"""Where a training job runs, and what follows from that: device, attention kernel, precision."""

import logging
from typing import Literal

import ray

from metaalign.config.sections import WorkersConfig
from metaalign.errors import ConfigError
from metaalign.train.task import DeviceType, TrainingConfig

GPU_BUDGET_MULTIPLE = 128
"""FlexAttention's blocks."""

logger = logging.getLogger(__name__)


def choose_device(workers: WorkersConfig) -> DeviceType:
    """cpu or cuda, for which the cluster has room as it stands.

    Only `workers.gpu: always` waits for nodes that an autoscaler has yet to start.

    Raises:
        ConfigError: there is no room.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    on_gpus = workers.gpu == "always" or (workers.gpu == "auto" and gpus > 0)
    device: DeviceType = "cuda" if on_gpus else "cpu"
    if workers.gpu == "auto" and 0 < gpus < workers.num_workers:
        raise ConfigError(
            f"workers.num_workers {workers.num_workers}: each takes a GPU, and the cluster has "
            f"{gpus}; lower it, or set workers.gpu to never, or to always where nodes with GPUs "
            "are yet to start"
        )
    each = workers.cpus_per_worker
    by_cpu = [int(node.get("CPU", 0) / each + 1e-6) for node in nodes]
    by_gpu = [int(node.get("GPU", 0)) for node in nodes] if on_gpus else by_cpu
    room = sum(map(min, by_cpu, by_gpu))
    if room >= workers.num_workers:
        return device
    if workers.gpu == "always":
        logger.warning(
            "waiting for nodes: %d of %d workers have room now", room, workers.num_workers
        )
        return device
    raise ConfigError(
        f"workers.num_workers {workers.num_workers} at workers.cpus_per_worker {each:g} is "
        f"{workers.num_workers * each:g} CPUs, and the cluster has "
        f"{sum(node.get('CPU', 0) for node in nodes):g} on {len(nodes)} node(s), with room for "
        f"{room} such worker(s); lower one of them"
    )


def choose_attention(
    config: TrainingConfig, device_type: DeviceType
) -> Literal["sdpa", "flex_attention"]:
    """The kernel that the settings and the device mean.

    Raises:
        ConfigError: the device has none such, or its blocks do not divide the budget.
    """
    attention, budget = config.model.attention, config.batch.budget
    if attention == "auto":
        attention = "flex_attention" if device_type == "cuda" else "sdpa"
    if attention == "flex_attention" and device_type == "cpu":
        raise ConfigError(
            "model.attention flex_attention cannot train on a CPU; set it to sdpa or auto"
        )
    if attention == "flex_attention" and budget % GPU_BUDGET_MULTIPLE:
        multiple = -(-budget // GPU_BUDGET_MULTIPLE) * GPU_BUDGET_MULTIPLE
        raise ConfigError(
            f"batch.budget ({budget}) must be a multiple of {GPU_BUDGET_MULTIPLE} for "
            f"FlexAttention; the next one is {multiple}"
        )
    return attention


def choose_dtype(config: TrainingConfig, device_type: DeviceType) -> Literal["float32", "bfloat16"]:
    """The precision that the settings and the device mean.

    Raises:
        ConfigError: the ZeRO stage cannot train in it.
    """
    dtype = config.model.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device_type == "cuda" else "float32"
    if dtype == "bfloat16" and config.zero.stage == 0:
        raise ConfigError(
            "zero.stage 0 with bfloat16 would keep no float32 weights to update; set zero.stage to "
            "1, 2 or 3, or model.dtype to float32"
        )
    return dtype
