"""Signals to a run while it trains: a request to stop, a node that will be preempted, or a takeover
by another job. Does not import Ray.

Stop requests and owners are files in the run's folder, so that they reach workers on every node.
"""

import uuid
from collections.abc import Callable
from pathlib import Path

import torch

from metaalign.errors import StorageError, TrainingError
from metaalign.folders import Remote, open_folder, read_text, size_of, write_whole
from metaalign.train.engines.interface import Engine

STOP_FILE = "STOP"
"""File in the run's folder that requests a stop. The driver writes it."""

OWNER_FILE = "OWNER"
"""File in the run's folder with the random name of the job that may write there."""

RUN_FILE = "RUN"
"""File beside checkpoints outside the run's folder, with the path of the run's folder."""

TRAINING_FILE = "TRAINING"
"""File beside the checkpoints with the random name of the training that they belong to."""


def take_over(run_folder: str | Path) -> str:
    """Make this job the owner of the run's folder. A job that still works there ends before its
    next checkpoint.

    Returns:
        The name under which the job owns it.
    """
    path = Path(run_folder) / OWNER_FILE
    name = uuid.uuid4().hex
    write_whole(path, name)
    return name


def claim(checkpoints: str, run_folder: str | Path) -> None:
    """Record the run's folder in its checkpoint folder, before the first checkpoint is written.

    Raises:
        TrainingError: the folder holds another run's checkpoints, or is itself a run's folder.
        StorageError: it cannot be read or written.
    """
    folder = open_folder(checkpoints)
    file = folder / RUN_FILE
    try:
        if not isinstance(folder, Remote):
            folder.mkdir(parents=True, exist_ok=True)
        if size_of(folder / OWNER_FILE) is not None:
            raise TrainingError(
                f"{checkpoints}: checkpoint.storage names the folder of another run; give this "
                "run another `output` or checkpoint.storage"
            )
        if size_of(file) is None:
            write_whole(file, str(run_folder))
        held = read_text(file)
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"{checkpoints}: checkpoint.storage cannot be used: {error}") from error
    if held != str(run_folder):
        raise TrainingError(
            f"{checkpoints}: checkpoint.storage holds the run of {held}; give this one another "
            f"`output` or checkpoint.storage, or delete {file} if that folder was moved to "
            f"{run_folder}"
        )


def name_training(checkpoints: str) -> str:
    """The random name of the training whose checkpoints are kept in this folder.

    It is given at the first call and lasts as long as the folder: if the folder is deleted, the
    training that starts there has another name.

    Raises:
        OSError: the folder cannot be read or written.
    """
    file = open_folder(checkpoints) / TRAINING_FILE
    if size_of(file) is None:
        write_whole(file, uuid.uuid4().hex)
    return read_text(file)


def _read_owner(run_folder: str | Path) -> str | None:
    """The name of the job that owns the run's folder; None if no job does."""
    try:
        return (Path(run_folder) / OWNER_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def check_owner(run_folder: str | Path, owner: str | None) -> None:
    """Check that the job still owns the run's folder under this name.

    Args:
        owner: None if no job owns the folder, as in a run without a driver.

    Raises:
        TrainingError: another job took it over.
    """
    if owner is not None and _read_owner(run_folder) != owner:
        raise TrainingError(
            f"{run_folder}: another job took over this folder and goes on with the run, so this "
            "one ends; give two jobs that run at once different `output`s"
        )


class Notices:
    """Reads the signals, with the same result on all workers. All must call it after every step."""

    def __init__(
        self,
        engine: Engine,
        run_folder: str | Path,
        *,
        every_steps: int,
        leaving: Callable[[], bool] | None,
    ) -> None:
        """Read no signal yet.

        Args:
            every_steps: Number of steps between two calls of `leaving`.
            leaving: Returns whether a node of the run is about to be preempted. It may be a
                barrier.
        """
        self._engine = engine
        self._file = Path(run_folder) / STOP_FILE
        self._every_steps = every_steps
        self._leaving = leaving
        self.stopped = False
        """Whether a stop has been requested."""

    def urgent(self, step: int) -> bool:
        """Whether to save a checkpoint now, because of a stop request or a node's preemption.

        A preemption is reported once; training continues until the node is gone.
        """
        flag = float(self._engine.rank == 0 and self._file.exists())
        requested = torch.tensor(flag, dtype=torch.float64, device=self._engine.device)
        self.stopped = float(self._engine.sum(requested)) > 0
        if self._leaving is None or step % self._every_steps or not self._leaving():
            return self.stopped
        self._leaving = None
        return True
