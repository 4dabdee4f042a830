"""ZeRO over two workers takes the steps of one process without DeepSpeed."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from metaalign.config.sections import OptimizerConfig, ZeroConfig
from metaalign.data.store import TokenStore
from metaalign.errors import TrainingError
from metaalign.train.optimizers import check_compiler, parameter_groups
from metaalign.train.task import Task, gather_materials
from metaalign.train.workers import build_policy
from metaalign.train.zero import PlainEngine, deepspeed_settings
from tests.tiny_task import ARCHITECTURE, run_workers, tiny_task
from tests.worker_scenarios import curve

STEPS = {"epochs": None, "max_steps": 10}


@pytest.fixture(scope="module")
def tasks(
    tmp_path_factory: pytest.TempPathFactory, make_store: Callable[..., TokenStore]
) -> dict[str, Task]:
    folder = tmp_path_factory.mktemp("zero")

    def task(name: str, stage: int, *, tied: bool = False, **zero: int) -> Task:
        storage = folder / f"tied-{tied}"
        optimizer = {"name": name, "learning_rate": 1e-3, "weight_decay": 0.1}
        settings = {"stage": stage, "persistence_threshold": 0, **zero}
        model = {"architecture": {**ARCHITECTURE, "tie_word_embeddings": tied}}
        return tiny_task(
            storage, make_store, length=STEPS, optimizer=optimizer, zero=settings, model=model
        )

    return {
        "adam": task("auto", 3),
        "sgd": task("sgd", 3),
        "tied": task("auto", 3, tied=True),
        "persistent": task("adamw", 3, persistence_threshold=300),
        "stage 2": task("auto", 2),
        "stage 1": task("auto", 1),
        "stage 0": task("auto", 0),
    }


@pytest.fixture(scope="module")
def curves(
    tasks: dict[str, Task], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[list[float]]]:
    """Loss and gradient norm of ten steps on two workers, by name of the task."""
    first, second = run_workers("steps", list(tasks.values()), tmp_path_factory.mktemp("steps"))
    assert first == second
    return dict(zip(tasks, first, strict=True))


def test_workers_have_unequal_numbers_of_targets(tasks: dict[str, Task]) -> None:
    plan = gather_materials(tasks["adam"]).plan
    targets = [
        [sum(int(plan.selection.targets[list(row)].sum()) for row in worker) for worker in ranks]
        for step in range(plan.num_steps)
        for ranks in (micro.bins_by_rank for micro in plan.layout(step, 2))
    ]
    assert sum(first != second for first, second in targets) > len(targets) / 2


@pytest.mark.parametrize(
    "name", ["adam", "sgd", "tied", "persistent", "stage 2", "stage 1", "stage 0"]
)
def test_two_workers_take_the_steps_of_one_process(
    name: str, tasks: dict[str, Task], curves: dict[str, list[list[float]]]
) -> None:
    task = tasks[name]
    alone = curve(task, PlainEngine(build_policy(task, None), task.config.optimizer))
    assert len(alone) == 10
    torch.testing.assert_close(
        torch.tensor(curves[name]), torch.tensor(alone), atol=1e-5, rtol=1e-5
    )


def test_the_fused_optimizers_agree_and_sgd_does_not(curves: dict[str, list[list[float]]]) -> None:
    losses = {name: torch.tensor(curve)[:, 0] for name, curve in curves.items()}
    torch.testing.assert_close(losses["adam"], losses["persistent"], atol=1e-5, rtol=1e-5)
    assert (losses["adam"] - losses["sgd"]).abs().max() > 1e-3


def test_gradients_are_reduced_and_added_up_in_float32() -> None:
    settings = deepspeed_settings(
        ZeroConfig(), max_grad_norm=None, dtype=torch.bfloat16, device_type="cuda"
    )
    assert settings["communication_data_type"] == "fp32"
    assert settings["data_types"] == {"grad_accum_dtype": "fp32"}
    assert settings["gradient_accumulation_steps"] == 1
    assert settings["gradient_clipping"] == 0.0


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


def test_a_missing_compiler_is_named_with_the_way_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(TrainingError, match=r"ninja, g\+\+ cannot be found.*optimizer.name=adamw"):
        check_compiler("auto", "cpu")
    check_compiler("adamw", "cpu")
