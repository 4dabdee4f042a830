"""The frame of every job: connects to Ray, opens the MLflow run, reports an error in one line."""

import errno
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.data
from ray.exceptions import RayTaskError

from metaalign.errors import MetaAlignError, StorageError
from metaalign.tracking import Run, check_nodes, open_run

_QUIET = {
    "ray.data": logging.WARNING,
    "ray.serve": logging.WARNING,
    # It reports our errors in a worker as Ray's own, at length.
    "ray.data.exceptions": logging.CRITICAL,
    # It warns that progress bars are off, which the jobs intend.
    "ray.data._internal.progress": logging.ERROR,
}
"""Lowest level that each of these loggers of Ray may log, so that it does not fill a job's log."""


def run_job(name: str, job: Callable[[Any, Run], object], config: Any) -> None:
    """Connect to Ray, open the job's MLflow run, and call `job`.

    `job` logs its settings after it has checked them, so a refused job does not overwrite the
    settings of the run that it would continue. If the job raises an error of ours, prints one line
    and exits with 1.
    """
    started = time.monotonic()
    with reported():
        connect()
        check_nodes(config.tracking, sum(node["Alive"] for node in ray.nodes()))
        output = getattr(config, "output", None) or config.name
        with open_run(
            config.tracking, storage=config.storage, name=output, resume_key=f"{name}/{output}"
        ) as run:
            job(config, run)
        print(f"{name}: finished in {clock(time.monotonic() - started)}; MLflow run {run.id}")


def connect() -> None:
    """Connect to the cluster to which the job was submitted, or start one on this machine."""
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("metaalign").setLevel(logging.INFO)
    for name, level in _QUIET.items():
        logging.getLogger(name).setLevel(level)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Otherwise Ray Train prints every line of a worker a second time, as a log record.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    # So that an error of ours in a worker of Ray Data reaches `reported` unwrapped.
    ray.data.DataContext.get_current().raise_original_map_exception = True
    if ray.is_initialized():
        return
    # Without RAY_ADDRESS, a worker that reads the cluster's state uses any Ray on its machine.
    address = os.environ.get("RAY_ADDRESS")
    environment = {"env_vars": {"RAY_ADDRESS": address}} if address else None
    ray.init(logging_level=logging.WARNING, runtime_env=environment)


@contextmanager
def reported() -> Iterator[None]:
    """If the block raises an error of ours, print it in one line and exit with code 1."""
    try:
        yield
    except (MetaAlignError, RayTaskError, OSError) as error:
        known = _own_error(error)
        if known is None:
            raise
        sys.stdout.flush()
        print(f"{type(known).__name__}: {known}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None


def _own_error(error: BaseException | None) -> MetaAlignError | None:
    """The error of ours or the full disk that caused `error`, here or in a worker; else None."""
    while isinstance(error, RayTaskError):
        error = error.cause
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(
            f"no space left to write {error.filename or 'a file'}: free space on its disk, in "
            "the storage, the temporary folder or a cache"
        )
    return error if isinstance(error, MetaAlignError) else None


def clock(seconds: float) -> str:
    """Minutes and seconds, such as 3:07."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
