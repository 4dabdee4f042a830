"""Workers that die while they start, each at another moment. Loaded by Ray Train's controller.

`RAY_TRAIN_CALLBACKS=tests.start_faults.DieAtStart`. Such callbacks run before Ray sets up the
process group.
"""

import os
import signal
import threading
import time
from typing import Any

import torch.distributed as dist
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.worker_group import WorkerGroup


class DieAtStart(WorkerGroupCallback):
    """A worker dies in each of the first three attempts."""

    def __init__(self) -> None:
        self._faults = [
            (1, die),
            (0, die_as_host_of_the_group),
            (1, die_before_training),
        ]

    def after_worker_group_start(self, worker_group: WorkerGroup) -> None:
        """Before the process group is set up."""
        if self._faults:
            rank, fault = self._faults.pop(0)
            worker_group.execute_single_async(rank, fault)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_as_host_of_the_group() -> None:
    """The next `init_process_group` waits for the other workers, and dies when they are there."""

    def host(*, world_size: int, **_: Any) -> None:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(address, port, world_size, is_master=True, wait_for_workers=False)
        time.sleep(3)
        assert store is not None  # it lives until here
        die()

    dist.init_process_group = host


def die_before_training() -> None:
    """When the process group is there, and the training function has yet to be loaded."""

    def wait() -> None:
        while not dist.is_initialized():
            time.sleep(0.001)
        die()

    threading.Thread(target=wait, daemon=True).start()
