"""What a run is told from outside while it trains: to stop, or that a node will go. Knows no Ray.

A stop is a file in the run's folder, so that the driver reaches workers on every node.
"""

from collections.abc import Callable
from pathlib import Path

import torch

from metaalign.train.engines import Engine

STOP_FILE = "STOP"
"""In the run's folder: the driver was told to end."""


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
