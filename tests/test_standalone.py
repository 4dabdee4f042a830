"""The jobs without Ray: one process and two of torchrun, as a user starts them."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from metaalign.store.token_store import TokenStore
from metaalign.train.checkpoints.history import newest_whole, saved_steps
from metaalign.train.loop.results import read_result
from tests.local_cluster import until
from tests.tiny_task import settings_of

ROOT = Path(__file__).resolve().parents[1]
MODULE = "metaalign.train.launch.standalone"


@pytest.fixture(scope="module")
def storage(
    tmp_path_factory: pytest.TempPathFactory, make_store: Callable[..., TokenStore]
) -> Path:
    folder = tmp_path_factory.mktemp("standalone")
    make_store(folder / "store")
    return folder


TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]


def command_of(launcher: list[str], job: str, storage: Path, **changed: Any) -> list[str]:
    """How a job is started in a shell, by settings in a file."""
    settings = settings_of(storage, **changed)
    del settings["workers"]
    file = storage / f"{changed['output']}.yaml"
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return [sys.executable, "-m", *launcher, MODULE, job, str(file)]


def start(launcher: list[str], job: str, storage: Path, **changed: Any) -> Any:
    """Run a job to its end; what the process gave."""
    return subprocess.run(
        command_of(launcher, job, storage, **changed),
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        check=False,
    )


def test_one_process_and_two_of_torchrun_take_the_same_steps(storage: Path) -> None:
    results = {}
    for output, launcher in {
        "one": [],
        "two": TORCHRUN,
    }.items():
        done = start(launcher, "dpo", storage, output=output, loss={"beta": 1.0})
        assert done.returncode == 0, done.stderr[-3000:]
        assert "dpo: 24 examples in 6 steps" in done.stdout
        plan = (storage / output / "plan.txt").read_text(encoding="utf-8")
        assert done.stdout.count(plan) == 1  # worker 0 alone prints it
        assert "  chosen  ⟦" in plan
        results[output] = read_result(storage / output)
    one, two = results["one"], results["two"]
    assert (one["workers"], two["workers"]) == (1, 2)
    assert one["optimizer"] == two["optimizer"] == "DeepSpeedCPUAdam"
    # Before the first step all rewards are ties but for rounding, and so is their order.
    before = [result["held_out"]["before"]["loss"] for result in (one, two)]
    assert before[0] == pytest.approx(before[1], abs=1e-5)
    assert two["held_out"]["after"] == pytest.approx(one["held_out"]["after"], abs=1e-5)
    assert one["loss"] == pytest.approx(two["loss"], abs=1e-5)
    assert one["held_out"]["after"]["loss"] < one["held_out"]["before"]["loss"]


def test_what_is_wrong_is_one_line(storage: Path) -> None:
    done = start([], "sft", storage, output="wrong", store="nowhere")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("DataError: ")
    assert "does not exist; run the prepare job first" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_it_is_tracked_and_goes_on_where_it_stopped(storage: Path) -> None:
    done = start([], "sft", storage, output="tracked")
    assert done.returncode == 0, done.stderr[-3000:]
    again = start([], "sft", storage, output="tracked")
    assert again.returncode == 0, again.stderr[-3000:]
    first = json.loads((storage / "tracked" / "result.json").read_text())
    assert first["steps"] == 6
    assert "6/6" in done.stderr
    assert "1/6" not in again.stderr
    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    (experiment,) = (each for each in client.search_experiments() if each.name == "metaalign")
    runs = client.search_runs([experiment.experiment_id])
    tracked = [run for run in runs if run.info.run_name == "tracked"]
    assert len(tracked) == 2  # the first had finished
    for run in tracked:
        assert run.data.metrics["plan/steps"] == 6
        assert 0.5 < run.data.metrics["plan/fill"] <= 1
        assert "plan.txt" in [file.path for file in client.list_artifacts(run.info.run_id)]


@pytest.mark.slow
def test_a_killed_run_that_is_started_again_leaves_one_curve(storage: Path) -> None:
    """Without a checkpoint, every step is taken again."""
    long = {"length": {"epochs": None, "max_steps": 600}, "checkpoint": {"every_steps": None}}
    killed = subprocess.Popen(
        command_of([], "sft", storage, output="killed", **long), cwd=ROOT, stderr=subprocess.DEVNULL
    )
    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")

    def steps() -> list[int]:
        found = client.search_runs(["1"], "attributes.run_name = 'killed'")
        points = [client.get_metric_history(run.info.run_id, "train/loss") for run in found]
        return [point.step for curve in points for point in curve]

    until(lambda: (storage / "mlflow.db").is_file() and steps(), 200, "the first points")
    killed.kill()
    killed.wait()
    before = len(steps())
    assert 0 < before < 600
    assert saved_steps(storage / "killed") == []
    again = start([], "sft", storage, output="killed", **long)
    assert again.returncode == 0, again.stderr[-3000:]
    assert steps() == list(range(1, 601))


@pytest.mark.slow
def test_two_of_torchrun_that_get_a_sigterm_save_and_one_process_goes_on(storage: Path) -> None:
    long = {
        "length": {"epochs": None, "max_steps": 300},
        "optimizer": {"learning_rate": 1e-4},
        "checkpoint": {"every_steps": None},
    }
    agent = subprocess.Popen(
        command_of(TORCHRUN, "sft", storage, output="stopped", **long),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )
    assert agent.stdout is not None
    lines = []
    for line in agent.stdout:
        lines.append(line)
        if "sft  [" in line:
            break
    assert agent.poll() is None, "".join(lines)
    agent.terminate()
    said = agent.communicate(timeout=120)[0]
    (step,) = saved_steps(storage / "stopped")
    assert 0 < step < 300
    assert f"stopped; saved at step {step}" in said
    assert newest_whole(storage / "stopped") is not None
    assert read_result(storage / "stopped") is None

    done = start([], "sft", storage, output="stopped", **long)
    assert done.returncode == 0, done.stderr[-3000:]
    whole = start([], "sft", storage, output="undisturbed", **long)
    assert whole.returncode == 0, whole.stderr[-3000:]
    found, expected = (read_result(storage / name) for name in ("stopped", "undisturbed"))
    assert found is not None
    assert expected is not None
    assert (found["steps"], found["workers"]) == (300, 1)
    assert found["loss"] == pytest.approx(expected["loss"], abs=1e-5)
    assert found["held_out"]["after"] == pytest.approx(expected["held_out"]["after"], abs=1e-5)
