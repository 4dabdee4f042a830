"""ZeRO over two workers takes the steps of one process without DeepSpeed."""

from collections.abc import Callable

import pytest
import torch

from metaalign.config.sections import ZeroConfig
from metaalign.data.store import TokenStore
from metaalign.train.engines import PlainEngine
from metaalign.train.task import Task, gather_materials
from metaalign.train.workers import build_policy
from metaalign.train.zero import deepspeed_settings
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
