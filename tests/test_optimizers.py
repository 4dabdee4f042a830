"""Which parameters decay, and what a step needs to exist."""

import pytest
from torch import nn

from metaalign.config.sections import OptimizerConfig
from metaalign.errors import TrainingError
from metaalign.train.engines.optimizers import check_compiler, parameter_groups
from tests.plain_engine import PlainEngine


def test_matrices_and_embeddings_are_decayed_and_vectors_are_not() -> None:
    module = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 4), nn.LayerNorm(4))
    decayed, others = parameter_groups(module, 0.1)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert [parameter.shape for parameter in decayed["params"]] == [(3, 2), (4, 2)]
    assert [parameter.shape for parameter in others["params"]] == [(4,), (4,), (4,)]


def test_a_gradient_over_the_limit_is_scaled_to_it() -> None:
    module = nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(1.0)
    optimizer = OptimizerConfig(name="sgd", max_grad_norm=1.0)
    engine = PlainEngine(module, optimizer)
    engine.backward(4.0 * module.weight.sum())
    assert engine.step(0.5).item() == 4.0
    # The gradient 4 is scaled to 1, times 0.5, off the weight 1.
    assert module.weight.item() == pytest.approx(0.5, abs=1e-6)


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_compiler("auto", "cpu")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(TrainingError, match=r"ninja, g\+\+ cannot be found on PATH; install it"):
        check_compiler("adamw", "cpu")
