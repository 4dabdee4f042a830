"""Which checkpoint a run goes on from, and which ones are kept."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from metaalign.config import ExportConfig
from metaalign.errors import CheckpointError
from metaalign.store.token_store import TokenStore
from metaalign.train.checkpoints.checkpoint_format import MARKER, step_folder
from metaalign.train.checkpoints.history import (
    agree_on_checkpoint,
    keep_checkpoints,
    newest_checkpoint,
    newest_whole,
    saved_steps,
)
from metaalign.train.checkpoints.saving import Saver
from metaalign.train.engines.starting import build_policy
from metaalign.train.export import run_export
from metaalign.train.task import Task
from tests.plain_engine import PlainEngine
from tests.test_export import trained
from tests.tiny_task import tiny_task
from tests.worker_pool import run_workers
from tests.worker_scenarios import run_task


def engine_of(task: Task) -> PlainEngine:
    return PlainEngine(build_policy(task, None), task.config.optimizer)


@pytest.fixture
def task(tmp_path: Path, make_store: Callable[..., TokenStore]) -> Task:
    return tiny_task(tmp_path, make_store, checkpoint={"every_steps": 2, "keep": 5})


@pytest.fixture
def run(task: Task) -> Path:
    """A run's folder with checkpoints of 2, 4 and 6 steps."""
    trained(task)
    return Path(task.folder)


def cut_short(folder: Path) -> str:
    file = next(folder.glob("*.distcp"))
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-1])
    return f"{file} is cut short: {size - 1} of {size} bytes"


def flip_bit(folder: Path) -> str:
    file = next(folder.glob("*.distcp"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    return f"{file} has another checksum"


def delete_file(folder: Path) -> str:
    (folder / ".metadata").unlink()
    return f"{folder / '.metadata'} is missing"


def flip_marker(folder: Path) -> str:
    marker = folder / MARKER
    marker.write_text(marker.read_text().replace('"step": 6', '"step": 7'))
    return f"{marker}: damaged: its checksum does not match"


def cut_marker(folder: Path) -> str:
    marker = folder / MARKER
    marker.write_text(marker.read_text()[:-9])
    return f"{marker}: damaged"


@pytest.mark.parametrize(
    "damage", [cut_short, flip_bit, delete_file, flip_marker, cut_marker], ids=lambda d: d.__name__
)
def test_the_one_before_a_damaged_checkpoint_is_used_with_a_warning(
    damage: Callable[[Path], str], task: Task, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert newest_whole(run) == run / step_folder(6)
    reason = damage(run / step_folder(6))
    assert newest_whole(run) == run / step_folder(4)
    assert f"{reason}" in caplog.text
    caplog.clear()
    assert agree_on_checkpoint(engine_of(task), run) == run / step_folder(4)
    assert f"{reason}" in caplog.text
    assert saved_steps(run) == [4, 2]
    assert (run / f"damaged-{step_folder(6)}").is_dir()


def test_a_run_goes_on_exactly_from_the_checkpoint_before_a_damaged_one(
    task: Task, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run / step_folder(6)
    before = {path.name: path.read_bytes() for path in whole.glob("*.distcp")}
    reason = flip_bit(whole)
    result = run_task(task, engine_of(task))
    assert sorted(result["losses"]) == [5, 6]
    assert reason in caplog.text
    assert {path.name: path.read_bytes() for path in whole.glob("*.distcp")} == before
    assert newest_whole(run) == whole


def test_of_the_damaged_the_newest_is_left_to_look_into(task: Task, run: Path) -> None:
    (run / f"damaged-{step_folder(1)}").mkdir()
    flip_bit(run / step_folder(4))
    flip_bit(run / step_folder(6))
    assert agree_on_checkpoint(engine_of(task), run) == run / step_folder(2)
    assert [path.name for path in run.glob("damaged-*")] == [f"damaged-{step_folder(6)}"]


def test_where_all_are_damaged_the_run_stops_and_says_so(task: Task, run: Path) -> None:
    for step in (2, 4, 6):
        flip_bit(run / step_folder(step))
    with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
        newest_whole(run)
    with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
        agree_on_checkpoint(engine_of(task), run)
    assert saved_steps(run) == [6, 4, 2]


def test_export_takes_the_checkpoint_before_a_damaged_one(
    task: Task, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reason = flip_bit(run / step_folder(6))
    with caplog.at_level(logging.INFO):
        run_export(ExportConfig(storage=task.config.storage, run="sft", output="out"))
    assert reason in caplog.text
    assert f"exported {run / step_folder(4)}" in caplog.text


def test_two_workers_agree_though_one_alone_sees_the_damage(
    tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    tasks = [
        tiny_task(tmp_path, make_store, output=name, checkpoint={"every_steps": 2, "keep": 5})
        for name in ("first", "second")
    ]
    found = run_workers("agree", tasks, tmp_path)
    # Of .metadata, __0_0.distcp and __1_0.distcp each worker reads every second one.
    assert [worker["warned"] for worker in found] == [[True, False], [False, True]]
    assert [worker["step"] for worker in found] == [[4, 4], [4, 4]]


def test_without_the_marker_it_does_not_count(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    (run / step_folder(6) / MARKER).unlink()
    assert newest_checkpoint(run) == newest_whole(run) == run / step_folder(4)
    assert not caplog.records
    shutil.rmtree(run)
    assert newest_checkpoint(run) is None
    assert newest_whole(run) is None


def test_the_newest_are_kept(task: Task, tmp_path: Path) -> None:
    engine, run = engine_of(task), tmp_path / "run"
    engine.prepare_state(1)
    saver = Saver(engine, run, identity={}, newest=5)
    for step in (2, 10, 9):
        saver.save(step, {})
    saver.wait()
    (run / step_folder(8)).mkdir()  # cut off before its marker
    (run / step_folder(11)).mkdir()
    keep_checkpoints(run, 2)
    names = sorted(path.name for path in run.iterdir())
    assert names == [step_folder(9), step_folder(10), step_folder(11)]
    assert newest_checkpoint(run) == run / step_folder(10)
