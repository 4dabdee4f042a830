"""Runs, resumes and the spool, against a real MLflow store on SQLite."""

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow import MlflowClient

from metaalign import tracking
from metaalign.config.sections import TrackingConfig
from metaalign.errors import TrackingError
from metaalign.store.token_store import TokenStore
from metaalign.tracking import Run, check_nodes, open_run, runs
from metaalign.train.launch.driver import begin_run, track_settings
from metaalign.train.task import Task
from tests.test_export import trained
from tests.tiny_task import tiny_task


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # One store for the file: making the first tables takes seconds.
    return tmp_path_factory.mktemp("storage")


@pytest.fixture
def client(storage: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{storage}/mlflow.db")


def opened(storage: Path, **options: object) -> Run:
    return open_run(TrackingConfig(), storage=str(storage), name="sft", **options)


def curve(client: MlflowClient, run: Run, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client.get_metric_history(run.id, name)]


@contextmanager
def broken(storage: Path) -> Iterator[None]:
    """A store whose tables are gone for a while, as after an accident with the database."""
    with sqlite3.connect(storage / "mlflow.db") as database:
        database.execute("ALTER TABLE runs RENAME TO runs_away")
    yield
    with sqlite3.connect(storage / "mlflow.db") as database:
        database.execute("ALTER TABLE runs_away RENAME TO runs")


def test_a_run_keeps_its_curve_settings_and_files(storage: Path, client: MlflowClient) -> None:
    (storage / "manifest.json").write_text("{}")
    with opened(storage) as run:
        for step in range(3):
            run.log_metrics({"train/loss": 3.0 - step}, step)
        run.log_params({"optimizer": {"learning_rate": 0.1}, "seed": 7, "long": "x" * 900})
        run.log_artifact(storage / "manifest.json", "store")
    found = client.get_run(run.id)
    assert curve(client, run, "train/loss") == [(0, 3.0), (1, 2.0), (2, 1.0)]
    assert found.data.params["optimizer.learning_rate"] == "0.1"
    assert found.data.params["long"] == "x" * tracking.MAX_VALUE_LENGTH
    assert found.info.status == "FINISHED"
    assert [file.path for file in client.list_artifacts(run.id, "store")] == ["store/manifest.json"]
    kept = storage / "artifacts" / run.id / "artifacts" / "store" / "manifest.json"
    assert kept.read_text() == "{}"


def test_a_child_names_its_parent_and_a_failure_its_status(
    storage: Path, client: MlflowClient
) -> None:
    with opened(storage) as parent:
        child = opened(storage, parent=parent)
        with pytest.raises(ZeroDivisionError), child:
            raise ZeroDivisionError
    assert client.get_run(child.id).data.tags["mlflow.parentRunId"] == parent.id
    assert client.get_run(child.id).info.status == "FAILED"
    assert client.get_run(parent.id).info.status == "FINISHED"


def test_a_restart_continues_the_run_that_did_not_finish(
    storage: Path, client: MlflowClient
) -> None:
    killed = opened(storage, resume_key="sft")
    killed.log_metrics({"train/loss": 1.0}, 0)
    killed.log_params({"seed": 7})
    killed.flush()
    with opened(storage, resume_key="sft") as again:
        again.log_metrics({"train/loss": 0.5}, 1)
        again.log_params({"seed": 8, "new": 1})
    found = client.get_run(again.id)
    assert again.id == killed.id
    assert curve(client, again, "train/loss") == [(0, 1.0), (1, 0.5)]
    assert (found.data.params["seed"], found.data.params["new"]) == ("7", "1")
    assert found.data.tags["resumed.seed"] == "8"
    assert found.info.status == "FINISHED"


def test_steps_that_are_taken_again_are_logged_once(storage: Path, client: MlflowClient) -> None:
    driver = opened(storage)
    killed = Run.attach(driver.address)
    for step in range(1, 6):
        killed.log_metrics({"train/loss": 6.0 - step}, step)
    killed.log_metrics({"held_out/loss": 9.0}, 4)
    killed.flush()
    again = Run.attach(driver.address)  # from the checkpoint of step 3
    for step in range(4, 8):
        again.log_metrics({"train/loss": 6.0 - step, "held_out/loss": 10.0 - step}, step)
        again.log_metrics({"train/loss": 0.5}, step)  # of this process, so it is the caller's word
    again.log_metrics({"seconds": 1.0})
    again.flush()
    driver.log_metrics({"seconds": 2.0})
    driver.finish()
    losses = [(1, 5.0), (2, 4.0), (3, 3.0), (4, 2.0), (5, 1.0)]
    assert curve(client, driver, "train/loss") == [*losses, (6, 0.0), (6, 0.5), (7, -1.0), (7, 0.5)]
    assert curve(client, driver, "held_out/loss") == [(4, 9.0), (5, 5.0), (6, 4.0), (7, 3.0)]
    assert curve(client, driver, "seconds") == [(0, 1.0), (0, 2.0)]


def test_steps_in_the_spool_of_a_killed_process_are_not_logged_again(
    storage: Path, client: MlflowClient
) -> None:
    driver = opened(storage)
    killed = Run.attach(driver.address)
    killed._spool = killed._spool.with_name(f"{driver.id}-0.jsonl")  # another process's
    killed.log_metrics({"train/loss": 3.0}, 1)
    killed.flush()
    with broken(storage):
        killed.log_metrics({"train/loss": 2.0}, 2)
        killed.flush()
    with Run.attach(driver.address) as again:
        for step in (1, 2, 3):
            again.log_metrics({"train/loss": 4.0 - step}, step)
    assert curve(client, driver, "train/loss") == [(1, 3.0), (3, 1.0)]
    driver.finish()
    assert sorted(curve(client, driver, "train/loss")) == [(1, 3.0), (2, 2.0), (3, 1.0)]


def test_another_training_under_the_same_name_gets_a_run_of_its_own(
    storage: Path, client: MlflowClient
) -> None:
    with opened(storage) as parent:
        first = opened(storage, resume_key="dpo", parent=parent)
        first.hold_training("rate 0.1", {}, resumes=True)
        first.log_metrics({"train/loss": 1.0}, 1)
        first.flush()
        same = opened(storage, resume_key="dpo", parent=parent)
        same.hold_training("rate 0.1", {}, resumes=True)
        assert same.id == first.id
        other = opened(storage, resume_key="dpo", parent=parent)
        other.hold_training("rate 0.2", {}, resumes=True)
        other.log_metrics({"train/loss": 2.0}, 1)
        other.flush()
    assert other.id != first.id
    assert curve(client, first, "train/loss") == [(1, 1.0)]
    assert curve(client, other, "train/loss") == [(1, 2.0)]
    assert client.get_run(first.id).info.status == "KILLED"
    found = client.get_run(other.id)
    assert (found.info.run_name, found.data.tags["mlflow.parentRunId"]) == ("sft", parent.id)
    assert opened(storage, resume_key="dpo").id == other.id


def test_the_settings_that_trained_are_those_of_the_run(
    storage: Path, client: MlflowClient, make_store: Callable[..., TokenStore]
) -> None:
    """A submission that ran out of memory before its first checkpoint leaves its own run."""

    def start(budget: int) -> tuple[Run, Task]:
        batch = {"global_batch_size": 7, "budget": budget, "rows": 2}
        task = tiny_task(storage, make_store, output="budget", batch=batch)
        begin_run(task)
        run = opened(storage, resume_key="budget")
        track_settings(run, task)
        run.log_metrics({"plan/steps": 6.0})
        run.log_metrics({"held_out/loss": 4.0}, 0)  # measured before the first step
        run.flush()
        return run, task

    too_large, _ = start(65536)
    assert start(65536)[0].id == too_large.id, "the same settings go on"
    fits, task = start(192)
    assert fits.id != too_large.id
    assert client.get_run(fits.id).data.params["batch.budget"] == "192"
    assert not [tag for tag in client.get_run(fits.id).data.tags if tag.startswith("resumed.")]
    trained(task)
    resumed, _ = start(256)
    found = client.get_run(resumed.id).data
    assert resumed.id == fits.id, "it goes on from a checkpoint"
    assert (found.params["batch.budget"], found.tags["resumed.batch.budget"]) == ("192", "256")


def test_a_training_whose_folder_was_deleted_gets_a_curve_of_its_own(
    storage: Path, client: MlflowClient, make_store: Callable[..., TokenStore]
) -> None:
    task = tiny_task(storage, make_store, output="deleted")

    def start(loss: float) -> Run:
        begin_run(task)
        run = opened(storage, resume_key="deleted")
        track_settings(run, task)
        for step in (1, 2):
            run.log_metrics({"train/loss": loss}, step)
        run.flush()
        return run

    first = start(3.0)
    assert start(2.0).id == first.id, "without a checkpoint, the same steps are taken again"
    shutil.rmtree(task.folder)
    again = start(1.0)
    assert curve(client, first, "train/loss") == [(1, 3.0), (2, 3.0)]
    assert curve(client, again, "train/loss") == [(1, 1.0), (2, 1.0)]


def test_a_finished_run_and_another_key_are_not_continued(storage: Path) -> None:
    with opened(storage, resume_key="done") as finished:
        pass
    assert opened(storage, resume_key="done").id != finished.id
    assert opened(storage, resume_key="other").id != opened(storage, resume_key="done").id


def test_rank_0_writes_to_the_drivers_run_and_does_not_end_it(
    storage: Path, client: MlflowClient
) -> None:
    with opened(storage) as driver:
        with Run.attach(json.loads(json.dumps(driver.address))) as rank_0:
            rank_0.log_metrics({"train/loss": 2.0}, 4)
        assert client.get_run(driver.id).info.status == "RUNNING"
        assert curve(client, driver, "train/loss") == [(4, 2.0)]


def test_a_store_that_breaks_later_is_a_spool_that_is_replayed_once(
    storage: Path, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "FLUSH_S", 0.0)
    monkeypatch.setattr(runs, "RETRY_S", 0.0)
    with opened(storage) as run:
        run.log_metrics({"train/loss": 3.0}, 0)
        with broken(storage):
            run.log_metrics({"train/loss": 2.0}, 1)
            run.set_tags({"colour": "red"})
            assert len(list((storage / ".tracking").glob(f"{run.id}*"))) == 1
        run.log_metrics({"train/loss": 1.0}, 2)
        assert not list((storage / ".tracking").glob(f"{run.id}*"))
    assert curve(client, run, "train/loss") == [(0, 3.0), (1, 2.0), (2, 1.0)]
    assert client.get_run(run.id).data.tags["colour"] == "red"


def test_a_run_that_ended_while_the_store_was_broken_is_mended_by_the_next_job(
    storage: Path, client: MlflowClient
) -> None:
    run = opened(storage)
    with broken(storage):
        run.log_metrics({"train/loss": 2.0}, 9)
        run.finish()
    assert client.get_run(run.id).info.status == "RUNNING"
    opened(storage)
    assert client.get_run(run.id).info.status == "FINISHED"
    assert curve(client, run, "train/loss") == [(9, 2.0)]


def test_what_rank_0_could_not_write_is_replayed_when_the_driver_finishes(
    storage: Path, client: MlflowClient
) -> None:
    with opened(storage) as driver:
        rank_0 = Run.attach(driver.address)
        rank_0._spool = rank_0._spool.with_name(f"{driver.id}-0.jsonl")  # another process's
        with broken(storage):
            rank_0.log_metrics({"train/loss": 1.5}, 7)
            rank_0.flush()
        assert curve(client, driver, "train/loss") == []
    assert curve(client, driver, "train/loss") == [(7, 1.5)]
    assert not list((storage / ".tracking").glob(f"{driver.id}*"))


def test_a_spool_of_another_store_is_kept_and_stops_no_job(
    storage: Path, caplog: pytest.LogCaptureFixture
) -> None:
    left = storage / ".tracking" / "gone-1.jsonl"
    left.parent.mkdir(exist_ok=True)
    line = {"uri": "http://gone:5000", "run_id": "gone", "kind": "finish", "status": "FINISHED"}
    left.write_text(json.dumps({**line, "time": 1}) + "\n")
    with opened(storage):
        pass
    assert "gone-1.jsonl is kept" in caplog.text
    assert left.exists()
    left.unlink()


def test_what_can_never_be_written_does_not_hold_up_the_rest(
    storage: Path, client: MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(storage) as run:
        run.log_artifact(storage / "deleted.png")
        run.log_metrics({"good": 2.0}, 1)
    assert curve(client, run, "good") == [(1, 2.0)]
    assert "rejected a line of artifact" in caplog.text


def test_a_relative_sqlite_path_is_refused() -> None:
    with pytest.raises(ValueError, match="relative path"):
        TrackingConfig(uri="sqlite:///mlflow.db")


def test_a_line_that_mlflow_refuses_is_dropped_and_the_rest_goes_on(
    storage: Path, client: MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(storage) as run:
        run.log_metrics({"bad*name": 1.0}, 0)
        run.flush()
        run.log_metrics({"good": 1.0}, 0)
    assert curve(client, run, "good") == [(0, 1.0)]
    assert "rejected a line of metrics" in caplog.text


def test_a_registered_model_gets_a_version_and_the_alias(
    storage: Path, client: MlflowClient
) -> None:
    folder = storage / "model"
    folder.mkdir()
    with opened(storage) as run:
        run.register_model(folder, "demo", "newest")
        run.register_model(folder, "demo", "newest")  # as a replayed spool would
    assert len(client.search_model_versions("name = 'demo'")) == 1
    with opened(storage) as run:
        run.register_model(folder, "demo", "newest")
    version = client.get_model_version_by_alias("demo", "newest")
    assert (int(version.version), version.run_id) == (2, run.id)
    assert version.source == folder.as_uri()


def test_a_store_that_is_broken_at_the_start_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is not a database")
    with pytest.raises(TrackingError, match=r"tracking\.uri 'sqlite:///.*mlflow\.db'"):
        open_run(TrackingConfig(), storage=str(tmp_path), name="sft")


def test_sqlite_is_refused_on_more_than_one_node() -> None:
    check_nodes(TrackingConfig(), 1)
    check_nodes(TrackingConfig(uri="http://tracking:5000"), 2)
    with pytest.raises(TrackingError, match="2 nodes"):
        check_nodes(TrackingConfig(), 2)
