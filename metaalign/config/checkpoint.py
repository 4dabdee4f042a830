"""When and where training saves."""

from pydantic import Field

from metaalign.config.places import Place
from metaalign.config.sections import Section, WorkersConfig


class CheckpointConfig(Section):
    """When and where training saves."""

    every_steps: int | None = Field(default=200, ge=1)
    """Steps between two checkpoints. None saves at the end alone, with a fixed num_workers."""

    storage: Place | None = None
    """Where checkpoints are kept, in a folder named like the run's: a path that every node sees, or
    object storage such as s3://bucket/runs?region=eu-central-1, with the nodes' own credentials.
    None keeps them in the run's folder."""

    keep: int = Field(default=2, ge=1)
    """Newest checkpoints that are kept; the best one is kept beside them."""

    notice_steps: int = Field(default=10, ge=1)
    """Steps between two looks for a notice that a node is about to be taken away; a checkpoint
    follows at once. A job that is told to stop saves after the step that it is at."""


def check_resizes(workers: WorkersConfig, checkpoint: CheckpointConfig) -> None:
    """Raises a ValueError for workers that come and go without a checkpoint to go on from."""
    if not isinstance(workers.num_workers, int) and checkpoint.every_steps is None:
        raise ValueError(
            f"checkpoint.every_steps None with workers.num_workers {[*workers.num_workers]}: a "
            "node that is lost or returns would take the run back to its first step; give "
            "every_steps a number"
        )
