"""A job that is told to end saves and leaves nothing behind. Starts a Ray of its own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from metaalign.data.store import TokenStore
from metaalign.train.history import newest_whole, saved_steps
from tests.tiny_task import settings_of


def processes_with(mark: str) -> list[str]:
    """Command lines of the processes whose environment holds this text."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_a_job_that_gets_sigterm_leaves_a_checkpoint_and_no_process(
    tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    """`ray job stop` sends the driver a SIGTERM, and kills it after RAY_JOB_STOP_WAIT_TIME_S."""
    storage = tmp_path / "storage"
    make_store(storage / "store")
    settings = settings_of(storage, output="stopped", length={"epochs": None, "max_steps": 100_000})
    config = tmp_path / "sft.yaml"
    config.write_text(json.dumps(settings))
    mark = f"METAALIGN_TEST={tmp_path.name}-{os.getpid()}"
    root = str(Path(__file__).resolve().parents[1])
    driver = subprocess.Popen(
        [sys.executable, "-m", "ray_jobs.sft", str(config)],
        cwd=root,
        env=os.environ | {"PYTHONPATH": root} | dict([mark.split("=")]),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert driver.stdout is not None
    lines = []
    for line in driver.stdout:
        lines.append(line)
        if "sft  [" in line:
            break
    assert driver.poll() is None, "".join(lines)
    assert processes_with(mark), "".join(lines)
    began = time.monotonic()
    driver.terminate()
    said = driver.communicate(timeout=60)[0]
    print(f"ended {time.monotonic() - began:.1f} s after SIGTERM")
    (step,) = saved_steps(storage / "stopped")
    assert driver.returncode == 143, said
    assert f"sft: told to stop; saved at step {step}" in said
    assert newest_whole(storage / "stopped") is not None
    for _ in range(100):
        if not processes_with(mark):
            break
        time.sleep(0.2)
    assert processes_with(mark) == []
