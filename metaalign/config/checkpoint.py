"""When and where training saves."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from metaalign.config.sections import Section, WorkersConfig, absolute_path

_URI = re.compile(r"(s3|gs|abfss?)://(?P<host>[^/?]+)[^?]*?(?P<slash>/*)(\?.*)?$")


def _place(place: str | None) -> str | None:
    if place is None:
        return None
    uri = _URI.match(place)
    if uri is None:
        expected = "an absolute path, or a folder in object storage such as s3://bucket/runs"
        return absolute_path(place, expected)
    # container@account is no key; a slash in a key would end the host before its @.
    if ":" in uri["host"].partition("@")[0]:
        raise ValueError(
            "holds a key, which logs and MLflow would show; the nodes' own credentials are used, "
            "such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or an instance's role"
        )
    return place[: uri.start("slash")] + place[uri.end("slash") :]


class CheckpointConfig(Section):
    """When and where training saves."""

    every_steps: int | None = Field(default=200, ge=1)
    """Steps between two checkpoints. None saves at the end alone, with a fixed num_workers."""

    storage: Annotated[str | None, AfterValidator(_place)] = None
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
