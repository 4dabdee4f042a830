"""Checkpoints are written beside training, whole or not at all."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from metaalign.config import SFTConfig
from metaalign.errors import StorageError
from metaalign.store.token_store import TokenStore
from metaalign.train.checkpoints.checkpoint_format import iterate_weights, step_folder
from metaalign.train.checkpoints.history import newest_whole, saved_steps
from metaalign.train.checkpoints.saving import Saver, take_snapshot
from metaalign.train.engines.starting import build_policy
from metaalign.train.launch.on_ray import run_sft
from metaalign.train.task import Task
from metaalign.train.worker import TrainingRun
from tests.plain_engine import PlainEngine
from tests.tiny_task import settings_of, tiny_task
from tests.worker_pool import run_workers


def engine_of(task: Task) -> PlainEngine:
    engine = PlainEngine(build_policy(task, None), task.config.optimizer)
    engine.prepare_state(1)
    return engine


def test_what_is_saved_is_the_state_at_the_call_however_soon_it_changes(
    tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    engine = engine_of(tiny_task(tmp_path, make_store))
    saver = Saver(engine, tmp_path / "run", identity={}, newest=2)
    progress = {"best": {"step": 1}}
    name = next(iter(engine.shapes()))
    before = engine.shard(name, None).clone()
    saver.save(1, progress)
    engine.shard(name, None).zero_()
    progress["best"]["step"] = 2
    saver.wait()
    folder = tmp_path / "run" / step_folder(1)
    assert dict(iterate_weights(folder))[name].flatten().equal(before)
    manifest = json.loads((folder / "COMPLETE").read_text())["manifest"]
    assert manifest["progress"] == {"best": {"step": 1}}


def test_a_snapshot_knows_its_size(tmp_path: Path, make_store: Callable[..., TokenStore]) -> None:
    engine = engine_of(tiny_task(tmp_path, make_store))
    snapshot = take_snapshot(engine, 1, {})
    assert snapshot.total_bytes == sum(shard.nbytes for shard in snapshot.shards.values())
    # Parameter, first and second moment.
    assert snapshot.total_bytes == 3 * 4 * sum(p.numel() for p in engine.policy.parameters())


class SlowDisk:
    """A storage whose folder cannot be made before `release`; what is written is written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.released = threading.Event(), threading.Event()
        mkdir = Path.mkdir

        def slow(path: Path, *args: Any, **keywords: Any) -> None:
            if threading.current_thread().name.startswith("checkpoint"):
                self.reached.set()
                assert self.released.wait(60)
            mkdir(path, *args, **keywords)

        monkeypatch.setattr(Path, "mkdir", slow)


def test_steps_go_on_while_a_checkpoint_is_being_written(
    tmp_path: Path, make_store: Callable[..., TokenStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk takes the checkpoint of step 2 only once step 3 was taken: a loop that waited for
    its writes would never get there."""
    task = tiny_task(tmp_path, make_store, checkpoint={"every_steps": 2, "keep": 9})
    engine = engine_of(task)
    Path(task.folder).mkdir()
    disk, taken = SlowDisk(monkeypatch), []

    class Steps:
        def log_metrics(self, values: Mapping[str, float], step: int) -> None:
            if "train/loss" in values:
                taken.append(step)
                if step == 3:
                    assert disk.reached.wait(60)
                    assert saved_steps(task.folder) == []
                    during.append(list(taken))
                    disk.released.set()

        def flush(self) -> None:
            pass

    during: list[list[int]] = []
    TrainingRun(task, engine, tracker=Steps()).run()
    assert during == [[1, 2, 3]]
    assert saved_steps(task.folder) == [6, 4, 2]


@pytest.mark.slow
def test_files_that_the_first_worker_does_not_see_are_no_checkpoint(
    tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    found = run_workers("save_out_of_sight", [tiny_task(tmp_path, make_store)], tmp_path)
    for kind, message, steps in found:
        assert kind == "StorageError"
        assert "__1_0.distcp: a worker wrote" in message
        assert "every node must see the same folder; set `storage`" in message
        assert steps == []


def test_a_job_whose_folder_another_took_over_ends_and_leaves_the_folder_alone(
    tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    found = run_workers("save_after_another_took_over", [tiny_task(tmp_path, make_store)], tmp_path)
    for kind, message, steps in found:
        assert kind == "TrainingError"
        assert "another job took over this folder" in message
        assert steps == [1]
    assert not (tmp_path / "run" / step_folder(2)).exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_one_clear_error_and_leaves_the_last_checkpoint_whole(
    small_disk: Path, tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    engine = engine_of(tiny_task(tmp_path, make_store))
    saver = Saver(engine, small_disk / "run", identity={}, newest=1)
    saver.save(1, {})
    saver.wait()
    free = os.statvfs(small_disk)
    (small_disk / "other").write_bytes(b"x" * (free.f_bavail * free.f_bsize - 20_000))
    saver.save(2, {})
    with pytest.raises(StorageError, match=r"step 2: .*takes 0\.\d MiB, and 0\.0 MiB are free"):
        saver.wait()
    assert newest_whole(small_disk / "run") == small_disk / "run" / step_folder(1)
    assert not (small_disk / "run" / step_folder(2)).exists()
    (small_disk / "other").unlink()
    saver.save(3, {})
    saver.wait()
    assert saved_steps(small_disk / "run") == [3]


LIMITED = """
import resource, signal, sys, torch
from pathlib import Path
from metaalign.errors import StorageError
from metaalign.train.checkpoints.saving import Saver
from tests.test_saving import engine_of
from metaalign.train.task import Task
import json
engine = engine_of(Task.from_plain(json.loads(Path(sys.argv[1]).read_text())))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
saver = Saver(engine, sys.argv[2], identity={}, newest=1)
saver.save(1, {})
try:
    saver.wait()
except StorageError as error:
    sys.exit(str(error))
"""


def test_a_write_that_fails_though_there_seemed_to_be_room_is_the_same_error(
    tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    task = tiny_task(tmp_path, make_store)
    (tmp_path / "task.json").write_text(json.dumps(task.to_plain()))
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "task.json"), str(tmp_path / "run")]
    root = str(Path(__file__).resolve().parents[1])
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": root}, capture_output=True, text=True, check=False
    )
    assert "step 1: the checkpoint could not be written" in done.stderr, done.stderr
    assert saved_steps(tmp_path / "run") == []


def test_all_workers_meet_what_one_of_them_could_not_write(
    small_disk: Path, tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    task = tiny_task(tmp_path, make_store)
    (tmp_path / "small.json").write_text(json.dumps(str(small_disk)))
    found = run_workers("full_disk", [task], tmp_path, fresh=True)
    assert found[0] == found[1]
    assert "step 1: the checkpoint could not be written" in found[0]


@pytest.mark.usefixtures("ray_cluster")
def test_a_job_on_a_full_disk_stops_at_once_and_says_why(
    small_disk: Path, make_store: Callable[..., TokenStore]
) -> None:
    make_store(small_disk / "store")
    settings = settings_of(small_disk, checkpoint={"every_steps": 1, "keep": 50})
    settings |= {"length": {"epochs": None, "max_steps": 50}, "workers": {"num_workers": 1}}
    with pytest.raises(StorageError, match=r"sft: step \d: the checkpoint could not be written"):
        run_sft(SFTConfig.model_validate(settings))
    assert newest_whole(small_disk / "sft") is not None
