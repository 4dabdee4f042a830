"""Processes that work on tests' jobs together, kept between tests: starting them costs more than
most of what they do."""

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from metaalign.train.task import Task

ROOT = Path(__file__).resolve().parents[1]
_LOG_CHARACTERS = 6000


class WorkerPool:
    """As many processes of `worker_scenarios` as a run has workers, in one process group."""

    def __init__(self, world_size: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.world_size = world_size
        self._log = tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115
        self._replies: list[int] = []
        self._processes: list[subprocess.Popen[str]] = []
        for rank in range(world_size):
            own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "OMP_NUM_THREADS": 1}
            own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_WORLD_SIZE": world_size}
            own |= {"DS_ACCELERATOR": "cpu", "PYTHONPATH": ROOT}
            reply, told = os.pipe()
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.worker_scenarios", str(told)],
                    env=os.environ | {key: str(value) for key, value in own.items()},
                    stdin=subprocess.PIPE,
                    stdout=self._log,
                    stderr=subprocess.STDOUT,
                    text=True,
                    pass_fds=(told,),
                )
            )
            os.close(told)
            self._replies.append(reply)

    def run(self, scenario: str, folder: Path, timeout_s: float) -> list[dict[str, Any]]:
        """Have every process run a scenario; what each returned, by rank.

        Raises:
            AssertionError: one of them failed, ended or did not answer in time.
        """
        start = os.path.getsize(self._log.name)
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps([scenario, str(folder)]) + "\n")
            process.stdin.flush()
        deadline = time.monotonic() + timeout_s
        for reply in self._replies:
            ready, _, _ = select.select([reply], [], [], max(0.0, deadline - time.monotonic()))
            if not ready or os.read(reply, 1) != b"1":
                self._log.seek(start)
                raise AssertionError(f"{scenario}:\n{self._log.read()[-_LOG_CHARACTERS:]}")
        results = [folder / f"{scenario}-{rank}.json" for rank in range(self.world_size)]
        return [json.loads(result.read_text()) for result in results]

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
        for process, reply in zip(self._processes, self._replies, strict=True):
            process.wait()
            os.close(reply)
        self._log.close()


_pools: dict[int, WorkerPool] = {}


def run_workers(
    scenario: str,
    tasks: list[Task],
    folder: Path,
    *,
    world_size: int = 2,
    timeout_s: int = 300,
    fresh: bool = False,
) -> list[dict[str, Any]]:
    """Run a function of `worker_scenarios` in processes of one thread; what each returned.

    Args:
        fresh: Whether the scenario needs processes of its own, since it measures what they hold,
            or leaves behind what would bend the next.
    """
    (folder / "tasks.json").write_text(json.dumps([task.to_plain() for task in tasks]))
    pool = WorkerPool(world_size) if fresh else _pools.pop(world_size, None)
    pool = pool or WorkerPool(world_size)
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(pool.close)
        results = pool.run(scenario, folder, timeout_s)
        if not fresh:
            _pools[world_size] = pool
            on_failure.pop_all()
    return results


def close_pools() -> None:
    """End what is kept; the next run starts anew."""
    while _pools:
        _pools.popitem()[1].close()
