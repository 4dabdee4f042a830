"""The fused optimizer of the hardware: which one, over which parameters, and its state.

Knows no engine: the parameters may be a model's own or the flat pieces that ZeRO cuts.
"""

import os
import shutil
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metaalign.config.sections import OptimizerConfig
from metaalign.errors import TrainingError

ADAM_STATE = ("exp_avg", "exp_avg_sq")
"""What every Adam here keeps for each parameter, beside the number of its steps."""


def optimizer_name(name: str, place: str) -> str:
    """The class that a setting means where the states rest, as it is logged.

    Args:
        place: cpu or cuda; cpu also where the optimizer is offloaded.
    """
    if name == "auto":
        return "FusedAdam" if place == "cuda" else "DeepSpeedCPUAdam"
    return {"adamw": "AdamW", "sgd": "SGD"}[name]


def check_compiler(name: str, device_type: str, place: str | None = None) -> None:
    """Find what DeepSpeed needs to build its ops, before a worker needs it.

    On a CPU it compiles its collectives for every optimizer; on CUDA its own Adam alone, and a
    driver without a GPU cannot tell what the workers have.

    Args:
        place: As in `optimizer_name`; None is the device.

    Raises:
        TrainingError: says what is missing and how to get it.
    """
    optimizer = optimizer_name(name, place or device_type)
    wanted = ["ninja", os.environ.get("CXX", "g++")]
    if device_type == "cuda":
        if optimizer in ("AdamW", "SGD") or not torch.cuda.is_available():
            return
        wanted += ["nvcc"] * (optimizer == "FusedAdam")
    missing = [tool for tool in wanted if shutil.which(tool) is None]
    if missing:
        remedy = ", or set optimizer.name=adamw" if device_type == "cuda" else ""
        raise TrainingError(
            f"DeepSpeed compiles its operators at their first use, and {', '.join(missing)} cannot "
            f"be found on PATH; install it (apt-get install g++ ninja-build){remedy}"
        )


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices and embeddings with weight decay, vectors
    without."""
    decayed, others = [], []
    for parameter in module.parameters():
        if parameter.requires_grad:
            (decayed if len(full_shape(parameter)) >= 2 else others).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(
    groups: Iterable[dict[str, Any]], config: OptimizerConfig, place: str
) -> Optimizer:
    """The optimizer over these parameter groups. `place` as in `optimizer_name`."""
    name = optimizer_name(config.name, place)
    if name == "SGD":
        return torch.optim.SGD(groups, lr=config.learning_rate)
    adam = {"lr": config.learning_rate, "betas": config.betas, "eps": config.epsilon}
    if name == "AdamW":
        return torch.optim.AdamW(groups, **adam, fused=True)
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

    if name == "FusedAdam":
        return FusedAdam(groups, **adam, adam_w_mode=True)
    return DeepSpeedCPUAdam(groups, **adam, adamw_mode=True)


def full_shape(parameter: Any) -> torch.Size:
    """The full shape, also of a parameter that ZeRO has cut."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def set_learning_rate(optimizer: Any, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def state_keys(optimizer: Optimizer) -> tuple[str, ...]:
    return () if isinstance(optimizer, torch.optim.SGD) else ADAM_STATE


def prepare_state(optimizer: Any, parameters: Iterable[Tensor], steps: int) -> None:
    name = type(optimizer).__name__
    if name == "SGD":
        return
    for parameter in parameters:
        state = optimizer.state[parameter]
        for key in ADAM_STATE:
            if key not in state:
                state[key] = torch.zeros_like(parameter.data, dtype=torch.float32)
        counter = torch.tensor(float(steps), device=parameter.device)
        state["step"] = counter if name == "AdamW" else steps
    if name == "DeepSpeedCPUAdam":
        _count_up(optimizer, steps)


def _count_up(optimizer: Any, steps: int) -> None:
    """Bring the C++ side of DeepSpeedCPUAdam to where it was after this many steps.

    It keeps running products of the betas; asked for step n out of order it takes powers instead,
    which differ in the last bit. Updates of nothing repeat the products.
    """
    nothing = torch.zeros(0)
    beta1, beta2 = optimizer.param_groups[0]["betas"]
    for step in range(1, steps + 1):
        arguments = (optimizer.opt_id, step, 0.0, beta1, beta2, 1.0, 0.0, True)
        optimizer.ds_opt_adam.adam_update(*arguments, *[nothing] * 4)
