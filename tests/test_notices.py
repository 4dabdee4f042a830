"""A run that is told to stop, or that a node will go, saves at once."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from metaalign.errors import TrainingError
from metaalign.store.token_store import TokenStore
from metaalign.train.checkpoints.history import saved_steps
from metaalign.train.checkpoints.notices import STOP_FILE, Notices, check_owner, take_over
from metaalign.train.engines.starting import build_policy
from metaalign.train.launch.driver import begin_run
from metaalign.train.loop.results import read_result
from metaalign.train.task import Task
from metaalign.train.worker import TrainingRun
from tests.plain_engine import PlainEngine
from tests.tiny_task import tiny_task
from tests.worker_pool import run_workers
from tests.worker_scenarios import run_task


@pytest.fixture
def task(tmp_path: Path, make_store: Callable[..., TokenStore]) -> Task:
    return tiny_task(tmp_path, make_store, checkpoint={"notice_steps": 2})


def engine_of(task: Task) -> PlainEngine:
    return PlainEngine(build_policy(task, None), task.config.optimizer)


def test_a_leaving_node_is_asked_for_every_few_steps_and_told_once(
    task: Task, tmp_path: Path
) -> None:
    asked: list[int] = []

    def leaving() -> bool:
        asked.append(step)
        return step >= 6

    notices = Notices(engine_of(task), tmp_path, every_steps=3, leaving=leaving)
    urgent = []
    for step in range(1, 13):
        urgent.append(notices.urgent(step))
    assert asked == [3, 6]
    assert [step for step, told in enumerate(urgent, start=1) if told] == [6]
    assert not notices.stopped


def test_a_checkpoint_follows_within_the_set_number_of_steps_and_training_goes_on(
    task: Task,
) -> None:
    asked: list[bool] = []

    def leaving() -> bool:
        asked.append(True)
        return len(asked) == 2

    run = TrainingRun(task, engine_of(task), tracker=None, leaving=leaving)
    result = run.run()
    # Asked after steps 2 and 4; the last step always saves.
    assert saved_steps(task.folder) == [6, 4]
    assert result["steps"] == 6


def test_a_run_that_is_told_to_stop_saves_and_is_taken_up_again(task: Task) -> None:
    class Stopper:
        def log_metrics(self, values: object, step: int) -> None:
            del values
            if step == 3:
                Path(task.folder).mkdir()
                (Path(task.folder) / STOP_FILE).touch()

        def flush(self) -> None:
            pass

    assert TrainingRun(task, engine_of(task), tracker=Stopper()).run() == {"stopped": 3}
    assert saved_steps(task.folder) == [3]
    assert read_result(task.folder) is None
    (Path(task.folder) / STOP_FILE).unlink()
    assert TrainingRun(task, engine_of(task), tracker=None).run()["steps"] == 6


def test_all_workers_stop_at_one_step(
    tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    def stop() -> None:
        while not (tmp_path / "sft" / "step-0000001").is_dir():
            time.sleep(0.05)
        (tmp_path / "sft" / STOP_FILE).touch()

    threading.Thread(target=stop, daemon=True).start()
    task = tiny_task(
        tmp_path,
        make_store,
        length={"epochs": None, "max_steps": 2000},
        checkpoint={"every_steps": 1},
    )
    first, second = run_workers("whole_run", [task], tmp_path)
    assert first[0]["result"] == second[0]["result"]
    assert first[0]["result"]["stopped"] == max(saved_steps(task.folder)) < 2000


def test_a_worker_of_an_older_job_that_starts_again_ends(
    tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    task = tiny_task(tmp_path, make_store, checkpoint={"every_steps": 2})
    older, newer = begin_run(task), begin_run(task)
    with pytest.raises(TrainingError, match="another job took over this folder"):
        run_task(older, engine_of(older))
    assert saved_steps(task.folder) == []
    run_task(newer, engine_of(newer))
    assert saved_steps(task.folder) == [6, 4]


def test_the_job_that_came_last_owns_the_folder(tmp_path: Path) -> None:
    check_owner(tmp_path, None)
    first = take_over(tmp_path)
    check_owner(tmp_path, first)
    second = take_over(tmp_path)
    with pytest.raises(TrainingError, match=r"another job took over this folder.*`output`"):
        check_owner(tmp_path, first)
    check_owner(tmp_path, second)
    assert [path.name for path in tmp_path.iterdir()] == ["OWNER"]
