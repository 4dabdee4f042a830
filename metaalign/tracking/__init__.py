"""MLflow: one run a job, children of a pipeline run; tracking never stops training."""

from metaalign.tracking.runs import (
    MAX_VALUE_LENGTH,
    Run,
    check_nodes,
    open_run,
    tracking_uri,
)

__all__ = ["MAX_VALUE_LENGTH", "Run", "check_nodes", "open_run", "tracking_uri"]
