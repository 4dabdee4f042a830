"""The interface of engines to the loop and the checkpoints. `zero.ZeroEngine` implements it.

Imports no DeepSpeed, data, loss or Ray.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metaalign.train.model.policy import TensorRows


class ForwardEngine(Protocol):
    """The interface of an engine for passes without a gradient."""

    policy: nn.Module
    rank: int
    world_size: int
    device: torch.device

    def forward(self, rows: TensorRows, *, last: bool = True) -> Tensor:
        """(T,) log-probs. `last` marks the last micro-batch of a step."""
        ...

    def sum(self, values: Tensor) -> Tensor:
        """The sum of `values` over all workers, on each of them."""
        ...


class Engine(ForwardEngine, Protocol):
    """The interface of an engine for training."""

    optimizer: Optimizer
    """The torch optimizer inside DeepSpeed's wrapper."""

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of this worker's part of the step's loss."""
        ...

    def step(self, learning_rate: float) -> Tensor:
        """Update the parameters. Returns the global gradient norm before clipping, a scalar."""
        ...

    def shard(self, name: str, key: str | None) -> Tensor:
        """This worker's flat shard of a float32 parameter, or of its optimizer state `key`."""
        ...

    def load_shard(self, name: str, key: str | None, value: Tensor) -> None:
        """Write what `shard` returned. Call `refresh` after the last `load_shard`."""
        ...

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Full shape of every trainable parameter, by name, in a fixed order."""
        ...

    def state_keys(self) -> tuple[str, ...]:
        """Names of each parameter's optimizer states."""
        ...

    def prepare_state(self, steps: int) -> None:
        """Create every optimizer state, with the step counter set to `steps`."""
        ...

    def refresh(self) -> None:
        """Copy the weights that `load_shard` wrote to where the forward pass reads them."""
        ...


def total_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Norm of all gradients, a float32 scalar.

    The squares are summed in float64, as in DeepSpeed: on a CPU torch's float32 sum is too small,
    by a relative 2e-3 for four million equal values.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = [torch.linalg.vector_norm(each, dtype=torch.float64) for each in gradients]
    return torch.linalg.vector_norm(torch.stack(norms)).float()


def trainable_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad)
