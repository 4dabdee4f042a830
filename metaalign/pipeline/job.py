"""What every job does around its work: Ray, the MLflow run, one clear line where it fails."""

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
    # It takes an error of ours in a worker for one of its own, and says so at length.
    "ray.data.exceptions": logging.CRITICAL,
    # It warns that bars are off, which is what the jobs ask for.
    "ray.data._internal.progress": logging.ERROR,
}
"""Loggers of Ray that would fill a job's log, and what they may still say."""


def run_job(name: str, job: Callable[[Any, Run], object], config: Any) -> None:
    """Connect to Ray, open the job's MLflow run, do the job, which logs its settings once it has
    checked them: a run that is refused and submitted again keeps those that were carried out.

    Where it fails on purpose, prints one line and exits with 1.
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
    """Join the cluster that the job was submitted to, or start one on this machine."""
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("metaalign").setLevel(logging.INFO)
    for name, level in _QUIET.items():
        logging.getLogger(name).setLevel(level)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray Train would print every line of a worker a second time, as a log record.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    # An error of ours in a worker of Ray Data is to reach `reported` as itself.
    ray.data.DataContext.get_current().raise_original_map_exception = True
    if ray.is_initialized():
        return
    # Without it, a worker that asks for the cluster's state looks for any Ray on its machine.
    address = os.environ.get("RAY_ADDRESS")
    environment = {"env_vars": {"RAY_ADDRESS": address}} if address else None
    ray.init(logging_level=logging.WARNING, runtime_env=environment)


@contextmanager
def reported() -> Iterator[None]:
    """End the process with one clear line and exit code 1 where the block fails on purpose."""
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
    """An error of ours or a full disk, here or in the worker that Ray's error tells of."""
    while isinstance(error, RayTaskError):
        error = error.cause
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(
            f"no space left to write {error.filename or 'a file'}: free some where it lies, in "
            "the storage, the temporary folder or a cache"
        )
    return error if isinstance(error, MetaAlignError) else None


def clock(seconds: float) -> str:
    """Minutes and seconds, such as 3:07."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
