"""A whole run: what it measures and keeps, and when it ends."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metaalign.config import DPOConfig, ExportConfig, SFTConfig
from metaalign.errors import CheckpointError
from metaalign.store.token_store import TokenStore
from metaalign.train.checkpoints.checkpoint_format import read_manifest, step_folder, write_manifest
from metaalign.train.checkpoints.history import choose_checkpoint, saved_steps
from metaalign.train.engines.starting import build_policy
from metaalign.train.export import run_export
from metaalign.train.loop.results import read_result
from metaalign.train.task import Task
from tests.plain_engine import PlainEngine
from tests.test_export import trained
from tests.tiny_task import settings_of, tiny_task
from tests.worker_scenarios import run_task

BEST = {"every_steps": 1, "best_metric": "loss", "patience": 2}
WORSE = {"name": "adamw", "learning_rate": 0.05, "schedule": "constant", "warmup_ratio": 0.0}
"""Learns the training split by heart: the held-out loss falls, then rises."""


def engine_of(task: Task) -> PlainEngine:
    return PlainEngine(build_policy(task, None), task.config.optimizer)


@pytest.fixture
def overfitted(tmp_path: Path, make_store: Callable[..., TokenStore]) -> Task:
    """A run of at most 60 steps that ends when the held-out loss has risen twice."""
    task = tiny_task(
        tmp_path,
        make_store,
        length={"epochs": None, "max_steps": 60},
        optimizer=WORSE,
        held_out=BEST,
        checkpoint={"every_steps": 1, "keep": 1},
    )
    trained(task)
    return task


def test_the_best_is_kept_and_training_ends_when_nothing_gets_better(
    overfitted: Task, tmp_path: Path
) -> None:
    result: Any = read_result(overfitted.folder)
    best = result["best"]
    assert 0 < best["step"] == result["steps"] - 2 < 58
    assert best["value"] < result["held_out"]["after"]["loss"]
    assert result["ended"] == (
        f"held_out.loss did not get better in 2 measurements after step {best['step']}"
    )
    assert saved_steps(overfitted.folder) == [result["steps"], best["step"]]

    again = run_task(overfitted, engine_of(overfitted))
    assert again["losses"] == {}
    assert again["result"]["best"] == best
    assert again["result"]["held_out"] == result["held_out"]

    export = {"storage": str(tmp_path), "run": "sft", "output": "out"}
    folder = run_export(ExportConfig.model_validate(export))
    card = (folder / "README.md").read_text()
    assert f"- steps: {best['step']}\n- held_out.loss: {best['value']:.4g}\n" in card
    run_export(ExportConfig.model_validate({**export, "checkpoint": "newest"}))
    assert f"- steps: {result['steps']}\n" in (folder / "README.md").read_text()


def test_a_checkpoint_is_chosen_by_name_or_step(
    overfitted: Task, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(overfitted.folder)
    newest, best = saved_steps(folder)
    assert choose_checkpoint(folder, "newest") == folder / step_folder(newest)
    assert choose_checkpoint(folder, None) == folder / step_folder(best)
    assert choose_checkpoint(folder, "best") == folder / step_folder(best)
    assert choose_checkpoint(folder, newest) == folder / step_folder(newest)
    with pytest.raises(CheckpointError, match=f"no checkpoint of 59 steps, only of {newest}, "):
        choose_checkpoint(folder, 59)
    file = next((folder / step_folder(best)).glob("*.distcp"))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"is cut short.*set `checkpoint` to another"):
        choose_checkpoint(folder, "best")
    assert choose_checkpoint(folder, None) == folder / step_folder(newest)
    assert "the best checkpoint cannot be used" in caplog.text
    shutil.rmtree(folder / step_folder(best))
    caplog.clear()
    assert choose_checkpoint(folder, None) == folder / step_folder(newest)
    assert f"no checkpoint of {best} steps, only of {newest}; using the newest" in caplog.text


def test_without_a_best_the_newest_is_chosen(
    tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    task = tiny_task(tmp_path, make_store)
    result = run_task(task, engine_of(task))["result"]
    assert result["best"] is None
    assert result["ended"] == "took every step"
    folder = Path(task.folder)
    assert choose_checkpoint(folder, None) == folder / step_folder(6)
    with pytest.raises(CheckpointError, match="kept no best checkpoint"):
        choose_checkpoint(folder, "best")


def test_a_resume_remembers_the_best(tmp_path: Path, make_store: Callable[..., TokenStore]) -> None:
    settings: dict[str, Any] = {
        "held_out": {"every_steps": 2, "best_metric": "reward_accuracy"},
        "checkpoint": {"every_steps": 3, "keep": 9},
    }
    whole, cut = (
        tiny_task(tmp_path, make_store, "dpo", output=name, **settings) for name in ("a", "b")
    )
    expected = run_task(whole, engine_of(whole))["result"]
    run_task(cut, engine_of(cut), stop_at=3)
    remembered = read_manifest(Path(cut.folder) / step_folder(3))["progress"]["best"]
    assert remembered["step"] == 2
    assert run_task(cut, engine_of(cut))["result"]["best"] == expected["best"]
    # Saved because due at 3 and 6; because best at 2, and wherever it was better.
    assert {2, 3, 6} <= set(saved_steps(cut.folder))


def test_a_resume_forgets_a_best_that_is_gone(
    tmp_path: Path, make_store: Callable[..., TokenStore], caplog: pytest.LogCaptureFixture
) -> None:
    held_out = {"every_steps": 1, "best_metric": "loss"}
    task = tiny_task(
        tmp_path,
        make_store,
        held_out=held_out,
        optimizer={**WORSE, "learning_rate": 1e-3},
        checkpoint={"every_steps": 1, "keep": 9},
    )
    run_task(task, engine_of(task), stop_at=3)
    folder = Path(task.folder)
    manifest = read_manifest(folder / step_folder(3))
    # As if the second step had been the best by far, and its checkpoint had been lost since.
    manifest["progress"]["best"] |= {"value": -1.0, "step": 2}
    write_manifest(folder / step_folder(3), manifest)
    shutil.rmtree(folder / step_folder(2))
    result = run_task(task, engine_of(task))["result"]
    assert "the best checkpoint, of step 2, is gone" in caplog.text
    assert 4 <= result["best"]["step"] <= 6
    assert choose_checkpoint(folder, "best") == folder / step_folder(result["best"]["step"])


@pytest.mark.parametrize(
    ("job", "held_out", "message"),
    [
        (SFTConfig, {"best_metric": "loss"}, "best_metric needs every_steps"),
        (SFTConfig, {"every_steps": 2, "patience": 3}, "patience needs best_metric"),
        (
            SFTConfig,
            {"every_steps": 2, "best_metric": "reward_accuracy"},
            "needs preference training; sft has only 'loss'",
        ),
        (DPOConfig, {"every_steps": 2, "best_metric": "accuracy"}, "reward_accuracy"),
    ],
)
def test_settings_of_the_best_must_agree(
    job: Any, held_out: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        job.model_validate(settings_of(tmp_path, held_out=held_out))


@pytest.mark.parametrize("metric", ["reward_accuracy", "reward_margin"])
def test_kto_has_no_pairs_to_choose_the_best_by(metric: str, tmp_path: Path) -> None:
    held_out = {"every_steps": 2, "best_metric": metric}
    settings = settings_of(tmp_path, loss={"name": "kto"}, held_out=held_out)
    with pytest.raises(ValueError, match=f"best_metric '{metric}' compares the responses"):
        DPOConfig.model_validate(settings)
    settings["held_out"] = {**held_out, "best_metric": "loss"}
    DPOConfig.model_validate(settings)
