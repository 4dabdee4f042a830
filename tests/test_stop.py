"""A job that is told to end saves and leaves nothing behind. Starts a Ray of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest

from metaalign.store.token_store import TokenStore
from metaalign.train.checkpoints.history import newest_whole, saved_steps
from metaalign.train.checkpoints.notices import STOP_FILE
from metaalign.train.launch.driver import stoppable
from tests.local_cluster import kill, until
from tests.tiny_task import settings_of, tiny_task


def processes_with(mark: str) -> dict[int, str]:
    """The processes whose environment holds this text, with their command lines."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes():
                line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found[int(process.name)] = line
        except OSError:
            continue
    return found


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[str]:
    """A variable of the environment; what still carries it after the test is killed."""
    mark = f"METAALIGN_TEST={tmp_path.name}-{os.getpid()}"
    yield mark
    for process in processes_with(mark):
        kill(process)


@pytest.mark.slow
def test_a_job_that_gets_sigterm_leaves_a_checkpoint_and_no_process(
    tmp_path: Path, mark: str, make_store: Callable[..., TokenStore]
) -> None:
    """`ray job stop` sends the driver a SIGTERM, and kills it after RAY_JOB_STOP_WAIT_TIME_S."""
    storage = tmp_path / "storage"
    make_store(storage / "store")
    settings = settings_of(
        storage,
        output="stopped",
        length={"epochs": None, "max_steps": 100_000},
        checkpoint={"every_steps": None},
    )
    config, log = tmp_path / "sft.yaml", tmp_path / "log"
    config.write_text(json.dumps(settings))
    root = str(Path(__file__).resolve().parents[1])
    with log.open("w") as output:
        driver = subprocess.Popen(
            [sys.executable, "-m", "ray_jobs.sft", str(config)],
            cwd=root,
            env=os.environ | {"PYTHONPATH": root} | dict([mark.split("=")]),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    until(lambda: "sft  [" in log.read_text() or driver.poll() is not None, 240, "a step")
    assert driver.poll() is None, log.read_text()
    assert processes_with(mark), log.read_text()
    began = time.monotonic()
    driver.terminate()
    driver.wait(60)
    print(f"ended {time.monotonic() - began:.1f} s after SIGTERM")
    (step,) = saved_steps(storage / "stopped")
    assert driver.returncode == 143, log.read_text()
    assert f"sft: stopped; saved at step {step}" in log.read_text()
    assert newest_whole(storage / "stopped") is not None
    until(lambda: not processes_with(mark), 20, "the end of every process")


@pytest.mark.slow
def test_ray_job_stop_leaves_a_checkpoint_and_no_process(
    tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    """The command itself, on a head that cluster/local.sh started, which makes it wait."""
    storage = tmp_path / "storage"
    make_store(storage / "store")
    (tmp_path / "home").mkdir()
    head = tmp_path / "head"
    environment = os.environ | {
        "HOME": str(tmp_path / "home"),
        "PYTHON": sys.executable,
        "RAY_HEAD": str(head),
        "RAY_AUTH_MODE": "token",
    }
    environment.pop("RAY_ADDRESS", None)
    script = str(Path(__file__).resolve().parents[1] / "cluster" / "local.sh")
    settings = settings_of(
        storage, length={"epochs": None, "max_steps": 100_000}, checkpoint={"every_steps": None}
    )
    (storage / "sft.yaml").write_text(json.dumps(settings))
    log = tmp_path / "log"

    def run(*command: str) -> str:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=180, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def workers() -> list[str]:
        session = (head / "temp").read_text().strip()
        lines = processes_with(session).values()
        return [line for line in lines if "RayTrainWorker" in line or "ray_jobs.sft" in line]

    run(script, "start")
    try:
        with log.open("w") as output:
            job = subprocess.Popen(
                [script, "submit", "python", "-m", "ray_jobs.sft", str(storage / "sft.yaml")],
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        until(lambda: "sft  [" in log.read_text() or job.poll() is not None, 240, "a step")
        (name,) = set(re.findall(r"raysubmit_\w+", log.read_text()))
        assert len(workers()) >= 2, log.read_text()
        ray = str(Path(sys.executable).with_name("ray"))
        address = (head / "address").read_text().strip()
        assert "stopped" in run(ray, "job", "stop", name, "--address", address)
        job.wait(60)
        (step,) = saved_steps(storage / "sft")
        assert f"sft: stopped; saved at step {step}" in log.read_text()
        assert newest_whole(storage / "sft") is not None
        until(lambda: not workers(), 20, "the end of every process of the job")
    finally:
        run(script, "stop")


def test_a_second_sigterm_ends_a_driver_whose_workers_cannot_obey(
    tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    task = tiny_task(tmp_path, make_store)
    folder = Path(task.folder)
    folder.mkdir()

    def end(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    def be_told_twice() -> None:
        with stoppable(task):
            signal.raise_signal(signal.SIGTERM)
            assert (folder / STOP_FILE).exists()
            signal.raise_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        with pytest.raises(SystemExit) as ended:
            be_told_twice()
        assert ended.value.code == 143
        assert signal.getsignal(signal.SIGTERM) is end
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not (folder / STOP_FILE).exists()
