"""What the loop and checkpoints ask of an engine that takes steps. `zero.ZeroEngine` is one.

Knows no DeepSpeed, no data, no loss and no Ray.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metaalign.train.model.policy import TensorRows


class ForwardEngine(Protocol):
    """What a pass without a gradient asks of an engine."""

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
    """What the loop and checkpoints ask of an engine."""

    optimizer: Optimizer
    """The basic optimizer, below any wrapper of DeepSpeed's."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of this worker's share of the step's loss."""
        ...

    def step(self, learning_rate: float) -> Tensor:
        """Update the parameters; the global gradient norm before clipping, a scalar."""
        ...

    def shard(self, name: str, key: str | None) -> Tensor:
        """This worker's flat shard of a float32 parameter, or of its optimizer state `key`."""
        ...

    def load_shard(self, name: str, key: str | None, value: Tensor) -> None:
        """Put back what `shard` gave. `refresh` must follow the last one."""
        ...

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Full shape of every trainable parameter, by name, in a fixed order."""
        ...

    def state_keys(self) -> tuple[str, ...]:
        """Names of the optimizer states that every parameter has."""
        ...

    def prepare_state(self, steps: int) -> None:
        """Make every optimizer state, as if after this many steps."""
        ...

    def refresh(self) -> None:
        """Let the forward pass see what `load_shard` wrote."""
        ...


def total_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Norm of all gradients, a float32 scalar.

    Summed in float64, as DeepSpeed sums it: on a CPU torch's own float32 sum comes out too
    small, by 2e-3 of it for four million equal values.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = [torch.linalg.vector_norm(each, dtype=torch.float64) for each in gradients]
    return torch.linalg.vector_norm(torch.stack(norms)).float()


def trainable_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad)
