"""Chooses the attention kernel and the precision for the device of a run. Does not import Ray."""

from typing import Literal

from metaalign.errors import ConfigError
from metaalign.train.task import DeviceType, TrainingConfig

GPU_BUDGET_MULTIPLE = 128
"""Size of FlexAttention's blocks: a row's length must be a multiple of it."""


def choose_attention(
    config: TrainingConfig, device_type: DeviceType
) -> Literal["sdpa", "flex_attention"]:
    """The attention kernel for `model.attention` on this device.

    Raises:
        ConfigError: the device does not support it, or its blocks do not divide the budget.
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
    """The precision for `model.dtype` on this device.

    Raises:
        ConfigError: the ZeRO stage does not support it.
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
