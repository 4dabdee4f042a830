"""The optimizer of a run: its class, its parameter groups and its state.

Imports no engine: the parameters are a model's own, or the flat partitions of ZeRO.
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
"""Names of the states that every Adam here keeps for each parameter, besides the step counter."""


def optimizer_name(name: str, place: str) -> str:
    """Name of the optimizer class for `optimizer.name`.

    Args:
        place: Device of the optimizer's states: cpu or cuda; cpu if the optimizer is offloaded.
    """
    if name == "auto":
        return "FusedAdam" if place == "cuda" else "DeepSpeedCPUAdam"
    return {"adamw": "AdamW", "sgd": "SGD"}[name]


def check_compiler(name: str, device_type: str, place: str | None = None) -> None:
    """Check that DeepSpeed can compile its operators, before a worker starts.

    On a CPU DeepSpeed compiles its collectives for every optimizer. On CUDA it compiles only its
    own Adam; a driver without a GPU checks nothing there, since its workers run elsewhere.

    Args:
        place: As in `optimizer_name`. None is the device.

    Raises:
        TrainingError: a tool is missing. The message says which, and how to install it.
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
    """Trainable parameters in two groups: matrices and embeddings, which decay, and vectors, which
    do not."""
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
    """Shape of the whole parameter, even if ZeRO-3 has partitioned it."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def set_learning_rate(optimizer: Any, learning_rate: float) -> None:
    """Set the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def state_keys(optimizer: Optimizer) -> tuple[str, ...]:
    """Names of each parameter's states, without the step counter. Empty for SGD."""
    return () if isinstance(optimizer, torch.optim.SGD) else ADAM_STATE


def prepare_state(optimizer: Any, parameters: Iterable[Tensor], steps: int) -> None:
    """Create the missing states of the parameters as zeros, and set the step counter to `steps`."""
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
    """Bring the C++ side of DeepSpeedCPUAdam to its state after this many steps.

    It keeps running products of the betas. If a step is out of order it computes powers instead,
    which differ in the last bit. Updates of empty tensors repeat the products.
    """
    empty = torch.zeros(0)
    beta1, beta2 = optimizer.param_groups[0]["betas"]
    for step in range(1, steps + 1):
        arguments = (optimizer.opt_id, step, 0.0, beta1, beta2, 1.0, 0.0, True)
        optimizer.ds_opt_adam.adam_update(*arguments, *[empty] * 4)
