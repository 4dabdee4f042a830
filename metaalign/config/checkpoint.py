"""Settings of checkpoints, shared by the sft and dpo jobs."""

from pydantic import Field

from metaalign.config.places import Place
from metaalign.config.sections import Section, WorkersConfig


class CheckpointConfig(Section):
    """When and where training saves checkpoints."""

    every_steps: int | None = Field(default=200, ge=1)
    """Steps between two checkpoints. None saves only at the end, and requires a fixed number of
    workers."""

    storage: Place | None = None
    """Where checkpoints are stored, in a folder with the run's name: a path that every node sees,
    or object storage such as s3://bucket/runs?region=eu-central-1, which the nodes access with
    their own credentials. None stores them in the run's folder."""

    keep: int = Field(default=2, ge=1)
    """Number of newest checkpoints to keep. The best one is kept in addition."""

    notice_steps: int = Field(default=10, ge=1)
    """Steps between two checks for a notice that a node will be taken away; after a notice,
    training saves a checkpoint at once. A job that is asked to stop finishes its step and saves."""


def check_resizes(workers: WorkersConfig, checkpoint: CheckpointConfig) -> None:
    """Raise a ValueError if the number of workers may change but no checkpoints are saved."""
    if not isinstance(workers.num_workers, int) and checkpoint.every_steps is None:
        raise ValueError(
            f"checkpoint.every_steps is None with workers.num_workers {[*workers.num_workers]}: if "
            "a node is lost or returns, the run would start again from its first step; set "
            "every_steps to a number"
        )
