"""ZeRO over two workers takes the steps of one process without DeepSpeed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.ops.op_builder.async_io import AsyncIOBuilder

from metaalign.config.sections import WorkersConfig, ZeroConfig
from metaalign.errors import ConfigError, TrainingError
from metaalign.store.token_store import TokenStore
from metaalign.train.engines.deepspeed_settings import (
    check_offload,
    check_second_cut,
    deepspeed_settings,
)
from metaalign.train.engines.starting import build_policy
from metaalign.train.task import Task, gather_materials
from tests.plain_engine import PlainEngine
from tests.tiny_task import ARCHITECTURE, tiny_task
from tests.worker_pool import run_workers
from tests.worker_scenarios import curve

STEPS = {"epochs": None, "max_steps": 10}


@pytest.fixture(scope="module")
def tasks(
    tmp_path_factory: pytest.TempPathFactory, make_store: Callable[..., TokenStore]
) -> dict[str, Task]:
    folder = tmp_path_factory.mktemp("zero")

    def task(
        name: str,
        stage: int,
        *,
        tied: bool = False,
        more: dict[str, Any] | None = None,
        **zero: Any,
    ) -> Task:
        storage = folder / f"tied-{tied}"
        optimizer = {"name": name, "learning_rate": 1e-3, "weight_decay": 0.1}
        threshold = {"persistence_threshold": 0} if stage == 3 else {}
        settings = {"stage": stage, **threshold, **zero}
        model = {"architecture": {**ARCHITECTURE, "tie_word_embeddings": tied}, **(more or {})}
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
        "stage 1 offloaded": task("auto", 1, offload_optimizer="cpu"),
        "states offloaded": task("auto", 3, offload_optimizer="cpu"),
        "all offloaded": task("adamw", 3, offload_optimizer="cpu", offload_parameters="cpu"),
        "checkpointed": task("auto", 3, more={"activation_checkpointing": True}),
        "second cut": task("auto", 3, hpz_partition_size=2),
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
    "name",
    [
        "adam",
        "sgd",
        "tied",
        "persistent",
        "stage 2",
        "stage 1",
        "stage 0",
        "stage 1 offloaded",
        "states offloaded",
        "all offloaded",
        "checkpointed",
        "second cut",
    ],
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


@pytest.mark.slow
def test_two_workers_and_three_take_the_same_steps_whatever_the_budget(
    tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    length = {"epochs": None, "max_steps": 5}
    batches = ({"budget": 96, "rows": 2}, {"budget": 256, "rows": 8})
    tasks = [
        tiny_task(tmp_path, make_store, job, length=length, batch={**batch, "global_batch_size": 9})
        for job in ("sft", "dpo")
        for batch in batches
    ]
    on_two = run_workers("steps", tasks, tmp_path, world_size=2)
    on_three = run_workers("steps", tasks, tmp_path, world_size=3)
    assert len(on_two[0][0]) == 5
    sft, dpo = torch.tensor(on_two[0][:2]), torch.tensor(on_two[0][2:])
    three = torch.tensor(on_three[0])
    for one, other in ((sft[0], sft[1]), (dpo[0], dpo[1]), (sft, three[:2]), (dpo, three[2:])):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    # They are steps: the loss falls, and DPO starts at log 2.
    assert (sft[:, 0, 0] - sft[:, -1, 0] > 1e-3).all()
    assert (dpo[:, 0, 0] - 0.6931472).abs().max() < 1e-6


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


@pytest.mark.parametrize(
    ("device_type", "found", "message"),
    [
        ("cpu", True, "train on CPUs, where DeepSpeed 0.19 builds its operator for NVMe without"),
        ("cuda", False, r"libaio's headers are missing; install.*\(apt-get install libaio-dev\)"),
    ],
)
def test_what_offloading_to_nvme_lacks_is_named(
    device_type: str, found: bool, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AsyncIOBuilder, "is_compatible", lambda *_, **__: found)
    zero = ZeroConfig(offload_optimizer="nvme", nvme_path=str(tmp_path))
    with pytest.raises(TrainingError, match=message):
        check_offload(zero, device_type)
    check_offload(ZeroConfig(offload_optimizer="cpu"), device_type)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stage": 0, "offload_optimizer": "cpu"}, "stage 0 partitions nothing"),
        ({"stage": 2, "offload_parameters": "cpu"}, "offload_parameters needs stage 3"),
        ({"stage": 2, "hpz_partition_size": 8}, "hpz_partition_size needs stage 3"),
        ({"stage": 2, "offload_optimizer": "nvme", "nvme_path": "/x"}, "nvme needs stage 3"),
        ({"offload_parameters": "cpu"}, "offload_parameters needs offload_optimizer"),
        ({"offload_optimizer": "nvme"}, "offloading to nvme needs nvme_path, and only then"),
        ({"nvme_path": "/x"}, "offloading to nvme needs nvme_path, and only then"),
    ],
)
def test_settings_that_the_stage_cannot_obey_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ZeroConfig.model_validate(settings)


@pytest.mark.parametrize(
    ("num_workers", "wrong"), [(4, None), ((2, 6), None), (3, 3), ((1, 4), 1), ((2, 5), 5)]
)
def test_second_cuts_divide_the_workers(num_workers: Any, wrong: int | None) -> None:
    zero, workers = ZeroConfig(hpz_partition_size=2), WorkersConfig(num_workers=num_workers)
    check_second_cut(ZeroConfig(), workers)
    if wrong is None:
        check_second_cut(zero, workers)
        return
    message = f"zero.hpz_partition_size 2 does not divide workers.num_workers {wrong}"
    with pytest.raises(ConfigError, match=message):
        check_second_cut(zero, workers)


def test_a_reference_is_asked_beside_a_second_cut(
    tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    zero = {"persistence_threshold": 300, "hpz_partition_size": 2}
    task = tiny_task(tmp_path, make_store, "dpo", zero=zero)
    # DeepSpeed 0.19 makes the groups of a second cut once a process.
    found = run_workers("ask_another", [task], tmp_path, fresh=True)
    for ((apart, held, moved),) in found:
        assert apart < 1e-6
        assert (held, moved) == (0, 0.0)


def test_offloaded_states_and_parameters_come_back_whole(
    tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    everything = {"offload_optimizer": "cpu", "offload_parameters": "cpu"}
    kinds = [{"stage": 1, "offload_optimizer": "cpu"}, everything]
    tasks = [
        tiny_task(tmp_path, make_store, output=f"kind-{number}", zero=kind)
        for number, kind in enumerate(kinds)
    ]
    assert run_workers("save_and_load", tasks, tmp_path) == [[True, True]] * 2
