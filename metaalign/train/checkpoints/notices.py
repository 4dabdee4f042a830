"""What a run is told from outside while it trains: to stop, that a node will go, or that another
job took over. Knows no Ray.

A stop and an owner are files in the run's folder, so that a driver reaches workers on every node.
"""

import uuid
from collections.abc import Callable
from pathlib import Path

import torch

from metaalign.errors import StorageError, TrainingError
from metaalign.folders import Remote, open_folder, read_text, size_of, write_whole
from metaalign.train.engines.interface import Engine

STOP_FILE = "STOP"
"""In the run's folder: the driver was told to end."""

OWNER_FILE = "OWNER"
"""In the run's folder: a name that the job drew which may write there."""

RUN_FILE = "RUN"
"""Where a run's checkpoints are kept, if that is elsewhere: the path of its folder."""


def take_over(run_folder: str | Path) -> str:
    """Own the run's folder, under the name that is returned: a job that works there yet ends before
    its next checkpoint."""
    path = Path(run_folder) / OWNER_FILE
    name = uuid.uuid4().hex
    write_whole(path, name)
    return name


def claim(checkpoints: str, run_folder: str | Path) -> None:
    """Note whose checkpoints are kept in a folder beside the run's, before the first is written.

    Raises:
        TrainingError: they are those of a run in another folder, or the folder is one itself.
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
            f"`output` or checkpoint.storage, or delete {file} where that folder was moved to "
            f"{run_folder}"
        )


def _read_owner(run_folder: str | Path) -> str | None:
    """The name of the job that owns the run's folder; None where no job took it."""
    try:
        return (Path(run_folder) / OWNER_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def check_owner(run_folder: str | Path, owner: str | None) -> None:
    """Whether the folder is still the job's that owned it under this name.

    Args:
        owner: None where no job took the folder, as in a run without a driver.

    Raises:
        TrainingError: another job took it over.
    """
    if owner is not None and _read_owner(run_folder) != owner:
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
