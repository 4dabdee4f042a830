"""The engine that others are held to: one process, torch alone."""

import torch
from torch import Tensor, nn

from metaalign.config.sections import OptimizerConfig
from metaalign.train.engines.interface import total_norm, trainable_parameters
from metaalign.train.engines.optimizers import (
    build_optimizer,
    parameter_groups,
    prepare_state,
    set_learning_rate,
    state_keys,
)
from metaalign.train.model.policy import TensorRows


class PlainEngine:
    """One process without DeepSpeed: the same steps as `ZeroEngine` takes on any number."""

    rank, world_size = 0, 1

    def __init__(
        self, policy: nn.Module, optimizer: OptimizerConfig, device: str | torch.device = "cpu"
    ) -> None:
        self.device = torch.device(device)
        self.policy = policy.to(self.device)
        self._parameters = dict(trainable_parameters(policy))
        self._max_grad_norm = optimizer.max_grad_norm
        groups = parameter_groups(policy, optimizer.weight_decay)
        self.optimizer = build_optimizer(groups, optimizer, self.device.type)

    def forward(self, rows: TensorRows, *, last: bool = True) -> Tensor:  # noqa: ARG002
        return self.policy(rows)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, learning_rate: float) -> Tensor:
        parameters = list(self._parameters.values())
        norm = total_norm(parameters)
        if self._max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, self._max_grad_norm, norm)
        set_learning_rate(self.optimizer, learning_rate)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def sum(self, values: Tensor) -> Tensor:
        return values

    def shard(self, name: str, key: str | None) -> Tensor:
        parameter = self._parameters[name]
        value = parameter if key is None else self.optimizer.state[parameter][key]
        return value.detach().flatten()

    def load_shard(self, name: str, key: str | None, value: Tensor) -> None:
        self.shard(name, key).copy_(value)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(value.shape) for name, value in self._parameters.items()}

    def state_keys(self) -> tuple[str, ...]:
        return state_keys(self.optimizer)

    def prepare_state(self, steps: int) -> None:
        prepare_state(self.optimizer, self._parameters.values(), steps)

    def refresh(self) -> None:
        pass
