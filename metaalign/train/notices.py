"""What a run is told from outside while it trains: to stop, that a node will go, or that another
job took over. Knows no Ray.

A stop and an owner are files in the run's folder, so that a driver reaches workers on every node.
"""

import os
import uuid
from collections.abc import Callable
from pathlib import Path

import torch

from metaalign.errors import TrainingError
from metaalign.train.engines import Engine

STOP_FILE = "STOP"
"""In the run's folder: the driver was told to end."""

OWNER_FILE = "OWNER"
"""In the run's folder: a name that the job drew which may write there."""


def take_over(run_folder: str | Path) -> None:
    """Own the run's folder: a job that works there yet ends before its next checkpoint."""
    path = Path(run_folder) / OWNER_FILE
    name = uuid.uuid4().hex
    partial = path.with_suffix(f".{name}.partial")
    partial.write_text(name, encoding="utf-8")
    os.replace(partial, path)


def read_owner(run_folder: str | Path) -> str | None:
    """The name of the job that owns the run's folder; None where no job took it."""
    try:
        return (Path(run_folder) / OWNER_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def check_owner(run_folder: str | Path, owner: str | None) -> None:
    """Whether the folder is still the job's whose workers read this owner when they started.

    Raises:
        TrainingError: another job took it over.
    """
    if read_owner(run_folder) != owner:
        raise TrainingError(
            f"{run_folder}: another job took over this folder and goes on with the run, so this "
            "one ends; give two jobs that run at once different `output`s"
        )


class Notices:
    """What has been told, alike on all workers. Every worker asks after every step."""

    def __init__(
        self,
        engine: Engine,
        run_folder: str | Path,
        *,
        every_steps: int,
        leaving: Callable[[], bool] | None,
    ) -> None:
        """Ask nobody yet.

        Args:
            every_steps: Steps between two questions to `leaving`.
            leaving: Whether a node of the run is about to be taken away. It may be a barrier.
        """
        self._engine = engine
        self._file = Path(run_folder) / STOP_FILE
        self._every_steps = every_steps
        self._leaving = leaving
        self.stopped = False
        """Whether the run was told to stop."""

    def urgent(self, step: int) -> bool:
        """Whether a checkpoint is due now: the run is to stop, or a node will go.

        A leaving node is reported once: training goes on until it is gone.
        """
        flag = float(self._engine.rank == 0 and self._file.exists())
        told = torch.tensor(flag, dtype=torch.float64, device=self._engine.device)
        self.stopped = float(self._engine.sum(told)) > 0
        if self._leaving is None or step % self._every_steps or not self._leaving():
            return self.stopped
        self._leaving = None
        return True
