"""Settings -> the dict that DeepSpeed reads, and what must be there to obey them."""

from typing import Any

import torch

from metaalign.config.sections import WorkersConfig, ZeroConfig
from metaalign.errors import ConfigError, TrainingError

REDUCE_BUCKET = {"cpu": 4_000_000, "cuda": 100_000_000}
"""Elements of gradient that are reduced together. DeepSpeed holds one buffer of this size."""


def deepspeed_settings(
    zero: ZeroConfig, *, max_grad_norm: float | None, dtype: torch.dtype, device_type: str
) -> dict[str, Any]:
    """The dict that DeepSpeed reads. Steps and learning rates are the loop's own business.

    Gradients are reduced and added up in float32 whatever the precision: DeepSpeed would reduce
    bfloat16 gradients in bfloat16. It must believe that every micro-batch is a step of its own
    (gradient accumulation 1); the engine tells it otherwise before each forward.
    """
    bucket = REDUCE_BUCKET[device_type]
    offloaded = {
        f"offload_{what}": {
            "device": place,
            "nvme_path": zero.nvme_path,
            "pin_memory": device_type == "cuda",
        }
        for what, place in (
            ("optimizer", zero.offload_optimizer),
            ("param", zero.offload_parameters),
        )
        if place is not None
    }
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_grad_norm or 0.0,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW runs on offloaded states as well
        "zero_optimization": {
            "stage": zero.stage,
            "memory_efficient_linear": device_type == "cuda",
            "overlap_comm": device_type == "cuda",
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "stage3_prefetch_bucket_size": bucket,
            "stage3_param_persistence_threshold": zero.persistence_threshold,
            "zero_hpz_partition_size": zero.hpz_partition_size or 1,
            **offloaded,
        },
    }


def optimizer_place(zero: ZeroConfig, device_type: str) -> str:
    """Where the optimizer's states rest while it runs: cpu or cuda."""
    return "cpu" if zero.offload_optimizer else device_type


def check_second_cut(zero: ZeroConfig, workers: WorkersConfig) -> None:
    """Every worker belongs to a group that holds a second cut of the parameters.

    Raises:
        ConfigError: so many workers cannot be divided into such groups.
    """
    size = zero.hpz_partition_size
    for count in (workers.min_workers, workers.max_workers):
        if size is not None and count % size:
            raise ConfigError(
                f"zero.hpz_partition_size {size} does not divide workers.num_workers {count}: give "
                "the number of workers of a node, and whole nodes; or leave it out"
            )


def check_offload(zero: ZeroConfig, device_type: str) -> None:
    """Find what offloading to NVMe needs, before a worker needs it.

    Raises:
        TrainingError: the workers train on CPUs, or libaio is missing here, which is where they
            are likely to run.
    """
    if "nvme" not in (zero.offload_optimizer, zero.offload_parameters):
        return
    if device_type == "cpu":
        raise TrainingError(
            "zero.offload_optimizer or zero.offload_parameters is nvme, and the workers train on "
            "CPUs, where DeepSpeed 0.19 builds its operator for NVMe without libaio and cannot "
            "load it; offload to cpu, or train on GPUs"
        )
    from deepspeed.ops.op_builder.async_io import AsyncIOBuilder

    if not AsyncIOBuilder().is_compatible(verbose=False):
        raise TrainingError(
            "zero.offload_optimizer or zero.offload_parameters is nvme, and DeepSpeed's "
            "asynchronous input and output cannot be built: libaio's headers are missing; install "
            "them on every node (apt-get install libaio-dev), or offload to cpu"
        )
