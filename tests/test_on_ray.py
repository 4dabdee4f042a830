"""The sft and dpo jobs on a real local Ray: what is refused before a worker starts, and a run."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from metaalign.config import DPOConfig, SFTConfig
from metaalign.errors import (
    ConfigError,
    DataError,
    MetaAlignError,
    ModelError,
    PlanError,
    TrainingError,
)
from metaalign.pipeline.job import run_job
from metaalign.store.token_store import TokenStore
from metaalign.tracking import Run
from metaalign.train.launch.driver import prepare_task
from metaalign.train.launch.on_ray import run_dpo, run_sft
from tests.local_cluster import kill, meanwhile, newest_step, training_group
from tests.tiny_task import ARCHITECTURE, settings_of

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def storage(
    tmp_path_factory: pytest.TempPathFactory, make_store: Callable[..., TokenStore]
) -> Path:
    folder = tmp_path_factory.mktemp("trainer")
    make_store(folder / "store")
    return folder


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"store": "nowhere"}, DataError, "does not exist; run the prepare job first"),
        ({"model": {"path": "/no/such"}}, ModelError, "there is no such folder"),
        (
            {"batch": {"global_batch_size": 7, "budget": 24}},
            PlanError,
            r"batch.budget \(24\) is too short",
        ),
        (
            {"batch": {"global_batch_size": 500}},
            PlanError,
            r"36 examples can be trained on, fewer than one step's.*\(500\)",
        ),
        (
            {"model": {"architecture": {**ARCHITECTURE, "max_position_embeddings": 8}}},
            PlanError,
            "no example of split 'train' is left",
        ),
        ({"workers": {"num_workers": 64}}, ConfigError, "takes 64 CPUs, and the cluster has 2"),
        (
            {"model": {"architecture": ARCHITECTURE, "attention": "flex_attention"}},
            ConfigError,
            "cannot train on a CPU",
        ),
        (
            {
                "model": {"architecture": ARCHITECTURE, "dtype": "bfloat16"},
                "zero": {"stage": 0},
            },
            ConfigError,
            "zero.stage 0 with bfloat16",
        ),
    ],
)
def test_what_is_wrong_is_found_before_a_worker_starts(
    changed: dict[str, Any], error: type[MetaAlignError], message: str, storage: Path
) -> None:
    config = SFTConfig.model_validate(settings_of(storage, output="refused", **changed))
    with pytest.raises(error, match=message):
        run_sft(config)
    assert not (storage / "refused").exists()


def test_training_falls_resumes_and_refuses_another_seed(storage: Path) -> None:
    settings = settings_of(
        storage,
        output="pairs",
        length={"epochs": None, "max_steps": 12},
        checkpoint={"every_steps": 4, "keep": 2},
        optimizer={"learning_rate": 1e-2},
        loss={"beta": 1.0},
    )
    result = run_dpo(DPOConfig.model_validate(settings))
    assert result["steps"] == 12
    assert result["optimizer"] == "DeepSpeedCPUAdam"
    assert result["workers"] == 2
    before, after = result["held_out"]["before"], result["held_out"]["after"]
    assert before["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert after["loss"] < before["loss"] - 0.02
    order = result["pair_order"]
    assert order["low"] <= order["accuracy"] <= order["high"]
    names = sorted(path.name for path in (storage / "pairs").glob("step-*"))
    assert names == ["step-0000008", "step-0000012"]
    assert list((storage / "store" / "reference").iterdir())
    assert "  chosen  ⟦" in (storage / "pairs" / "plan.txt").read_text(encoding="utf-8")

    again = run_dpo(DPOConfig.model_validate(settings))
    assert again["held_out"] == result["held_out"]
    with pytest.raises(TrainingError, match=r"seed: 0 then, 1 now"):
        prepare_task(DPOConfig.model_validate({**settings, "seed": 1}), "cpu")


@pytest.mark.slow
def test_the_settings_that_are_logged_are_those_that_trained(storage: Path) -> None:
    def submit(job: Callable[..., object] = run_sft, **changed: Any) -> None:
        config = SFTConfig.model_validate(settings_of(storage, output="logged", **changed))
        run_job("sft", job, config)

    def train_and_fail(config: SFTConfig, run: Run) -> None:
        run_sft(config, run)
        raise TrainingError("the node was lost")

    batch = {"global_batch_size": 7, "rows": 2}
    with pytest.raises(SystemExit):
        submit(batch={**batch, "budget": 16})
    with pytest.raises(SystemExit):
        submit(train_and_fail)
    with pytest.raises(SystemExit):
        submit(seed=1)
    submit(workers={"num_workers": 1})
    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    (run,) = client.search_runs(["1"], "attributes.run_name = 'logged'")
    assert (run.data.params["batch.budget"], run.data.params["seed"]) == ("192", "0")
    resumed = {key: value for key, value in run.data.tags.items() if key.startswith("resumed.")}
    assert resumed == {"resumed.workers.num_workers": "1"}
    assert [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")] == [
        1, 2, 3, 4, 5, 6
    ]  # fmt: skip


@pytest.mark.slow
def test_a_killed_worker_costs_nothing_but_time(storage: Path) -> None:
    settings = settings_of(
        storage,
        length={"epochs": None, "max_steps": 60},
        checkpoint={"every_steps": 5, "keep": 3},
        workers={"num_workers": 2, "max_failures": 2},
    )
    undisturbed = run_sft(SFTConfig.model_validate({**settings, "output": "undisturbed"}))
    folder, killed_after = storage / "killed", []

    def disturb() -> None:
        assert kill(training_group(folder)[-1])
        killed_after.append(newest_step(folder))

    with meanwhile(disturb):
        result = run_sft(SFTConfig.model_validate({**settings, "output": "killed"}))
    assert 0 < killed_after[0] < 60
    assert result["loss"] == undisturbed["loss"]
    assert result["held_out"] == undisturbed["held_out"]
    assert result["tokens"] == undisturbed["tokens"]


@pytest.mark.slow
def test_a_run_that_diverges_ends_with_its_reason_and_without_restarts(storage: Path) -> None:
    settings = settings_of(
        storage,
        output="diverged",
        optimizer={"name": "sgd", "learning_rate": 1e30, "max_grad_norm": None},
        workers={"num_workers": 1},
    )
    with pytest.raises(
        TrainingError, match=r"sft: step \d: the loss is .* optimizer.learning_rate"
    ):
        run_sft(SFTConfig.model_validate(settings))


@pytest.mark.slow
def test_a_worker_that_fails_alone_ends_the_attempt(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one waits for it in a collective, which lasts half an hour."""
    monkeypatch.setenv("RAY_TRAIN_CALLBACKS", "tests.lone_failure.FailAlone")
    settings = settings_of(
        storage,
        output="alone",
        length={"epochs": None, "max_steps": 3000},
        workers={"num_workers": 2, "max_failures": 1},
    )
    began = time.monotonic()
    with pytest.raises(TrainingError, match="sft: the disk of worker 1 is gone"):
        run_sft(SFTConfig.model_validate(settings))
    assert time.monotonic() - began < 120


@pytest.fixture
def _workers_that_die_at_their_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TRAIN_CALLBACKS", "tests.start_faults.DieAtStart")
    # How long the survivors of a set-up that failed are asked to end in order.
    monkeypatch.setenv("TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S", "2")


@pytest.mark.slow
@pytest.mark.usefixtures("_workers_that_die_at_their_start")
def test_workers_that_die_while_they_start_are_replaced(storage: Path) -> None:
    """Before, in and after the set-up of the process group: three failures, and then a run."""
    workers = {"num_workers": 2, "max_failures": 3}
    settings = settings_of(storage, output="started", workers=workers)
    assert run_sft(SFTConfig.model_validate(settings))["steps"] == 6


@pytest.mark.slow
@pytest.mark.usefixtures("_workers_that_die_at_their_start")
def test_a_worker_that_dies_while_it_starts_is_a_failure_that_counts(storage: Path) -> None:
    workers = {"num_workers": 2, "max_failures": 1}
    settings = settings_of(storage, output="not_started", workers=workers)
    with pytest.raises(TrainingError, match=r"sft: a worker (was lost|failed): "):
        run_sft(SFTConfig.model_validate(settings))
