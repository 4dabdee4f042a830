"""A worker that fails alone amid a step: worker 1 cannot read a prompt, the others wait for it.

`torchrun -m tests.lone_failure sft CONFIG.yaml`, or in the workers of Ray Train
`RAY_TRAIN_CALLBACKS=tests.lone_failure.FailAlone`.
"""

import os

import numpy as np
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.worker_group import WorkerGroup

from metaalign.errors import StorageError
from metaalign.store.token_store import TokenStore
from metaalign.train.launch import standalone

READ_BEFORE = 400
"""Prompts that are read before: the held-out loss is measured, and some steps are taken."""


class FailAlone(WorkerGroupCallback):
    """Worker 1 fails in every attempt."""

    def after_worker_group_start(self, worker_group: WorkerGroup) -> None:
        """Before the process group is set up."""
        worker_group.execute_single_async(1, fail_while_reading)


def fail_while_reading() -> None:
    """Let this process read some prompts, and no more."""
    whole, left = TokenStore.prompt, [READ_BEFORE]

    def read(store: TokenStore, example: int) -> np.ndarray:
        left[0] -= 1
        if left[0] < 0:
            raise StorageError("the disk of worker 1 is gone")
        return whole(store, example)

    TokenStore.prompt = read


if __name__ == "__main__":
    if os.environ["RANK"] == "1":
        fail_while_reading()
    standalone.main()
