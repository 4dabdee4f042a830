"""Tracking in MLflow: one run per job, nested under a pipeline's run.

A failure of MLflow after the start never stops training.
"""

from metaalign.tracking.runs import (
    MAX_VALUE_LENGTH,
    Run,
    check_nodes,
    open_run,
    tracking_uri,
)

__all__ = ["MAX_VALUE_LENGTH", "Run", "check_nodes", "open_run", "tracking_uri"]
