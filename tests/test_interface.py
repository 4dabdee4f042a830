"""The engine of one process: what it says of its gradients is exact."""

import pytest
import torch
from torch import nn

from metaalign.train.engines.interface import total_norm


def gradient_of(*values: float, count: int) -> nn.Parameter:
    parameter = nn.Parameter(torch.zeros(count, len(values)))
    parameter.grad = torch.tensor([values]).repeat(count, 1)
    return parameter


def test_the_norm_of_many_small_gradients_keeps_its_digits() -> None:
    # 4,000,000 times 0.1 squared is 40,000; torch's own float32 sum on a CPU gives 199.65 here.
    norm = total_norm([gradient_of(0.1, count=4_000_000)])
    assert norm.item() == pytest.approx(200.0, rel=1e-7)
    assert norm.dtype == torch.float32


def test_the_norm_is_of_all_parameters_that_have_a_gradient() -> None:
    # 3, 4 and 12: 9 + 16 + 144 = 169.
    frozen = nn.Parameter(torch.ones(7))
    assert total_norm([gradient_of(3.0, 4.0, count=1), frozen, gradient_of(-12.0, count=1)]) == 13
