"""Builds DeepSpeed's config dict from the settings, and checks that this cluster supports them."""

from typing import Any

import torch

from metaalign.config.sections import WorkersConfig, ZeroConfig
from metaalign.errors import ConfigError, TrainingError

REDUCE_BUCKET = {"cpu": 4_000_000, "cuda": 100_000_000}
"""Number of gradient elements reduced together. DeepSpeed holds one buffer of this size."""


def deepspeed_settings(
    zero: ZeroConfig, *, max_grad_norm: float | None, dtype: torch.dtype, device_type: str
) -> dict[str, Any]:
    """The config dict of DeepSpeed. The loop, not DeepSpeed, sets steps and learning rates.

    Gradients are reduced and accumulated in float32 in every precision: by default DeepSpeed
    reduces bfloat16 gradients in bfloat16. `gradient_accumulation_steps` must be 1: instead, the
    engine sets the accumulation boundary before each forward pass.
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
    """Device of the optimizer's states while the optimizer runs: cpu or cuda."""
    return "cpu" if zero.offload_optimizer else device_type


def check_second_cut(zero: ZeroConfig, workers: WorkersConfig) -> None:
    """Check that `zero.hpz_partition_size` divides the workers into groups of that size.

    Raises:
        ConfigError: it does not divide the number of workers.
    """
    size = zero.hpz_partition_size
    for count in (workers.min_workers, workers.max_workers):
        if size is not None and count % size:
            raise ConfigError(
                f"zero.hpz_partition_size {size} does not divide workers.num_workers {count}: set "
                "it to the number of workers per node, and use whole nodes; or leave it out"
            )


def check_offload(zero: ZeroConfig, device_type: str) -> None:
    """Check that offloading to NVMe can work, before a worker starts.

    Raises:
        TrainingError: the workers train on CPUs, or libaio is missing on this machine, which is
            likely to be like theirs.
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
