"""One MLflow run per job, continued across restarts, and the spool.

If MLflow fails when a run is opened, the job fails. If it fails later, metrics go to the spool, a
file of JSON lines, with a warning; they are sent once MLflow answers again. Tracking never stops
training.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from metaalign.config.sections import TrackingConfig
from metaalign.errors import TrackingError
from metaalign.tracking.lines import (
    connect,
    find_experiment,
    first_line,
    is_file,
    last_steps,
    read_lines,
    replay,
    run_of_training,
    send,
    spooled_steps,
    start_run,
)

FLUSH_S = 1.0
"""Seconds for which metrics are collected before they are written together."""

RETRY_S = 20.0
"""Seconds after a failure for which lines go straight to the spool."""

MAX_VALUE_LENGTH = 500
"""Most characters of a parameter or tag; longer values are cut."""

logger = logging.getLogger(__name__)


def tracking_uri(config: TrackingConfig, storage: str) -> str:
    """The configured tracking URI, or the SQLite file in the storage."""
    return config.uri or f"sqlite:///{storage}/mlflow.db"


def check_nodes(config: TrackingConfig, num_nodes: int) -> None:
    """Raise an error if several nodes would write to an SQLite file.

    Raises:
        TrackingError: names the setting to change.
    """
    if num_nodes > 1 and (config.uri is None or is_file(config.uri)):
        raise TrackingError(
            f"tracking.uri {config.uri!r} is an SQLite file, and the cluster has {num_nodes} "
            "nodes, but SQLite is safe on one node only. Start `mlflow server` and set "
            "tracking.uri to its address"
        )


class Run:
    """One MLflow run: opened by the driver with `open_run`, or attached to by rank 0.

    On leaving the context, the driver's Run ends the MLflow run; an attached Run only flushes.
    """

    def __init__(self, *, uri: str, run_id: str, spool: str, client: Any = None) -> None:
        self.uri = uri
        self.id = run_id
        self._client = client or connect(uri)
        self._owns_run = client is not None
        self._folder = Path(spool)
        self._spool = self._spool_of(run_id)
        self._logged_before: dict[str, int] | None = None
        self._collected: list[list[Any]] = []
        self._flushed_at = time.monotonic()
        self._retry_at = 0.0

    @property
    def address(self) -> dict[str, str]:
        """The argument for `attach` in another process."""
        return {"uri": self.uri, "run_id": self.id, "spool": str(self._folder)}

    @classmethod
    def attach(cls, address: Mapping[str, str]) -> "Run":
        """Use the run at `address` from another process, without ending it on exit."""
        return cls(**address)

    def log_metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Add a point to each named curve. Written within about a second, or at `flush`.

        Args:
            step: A point is skipped if an earlier process has already logged this step of its
                curve, since a resumed training repeats the steps after the last checkpoint. None
                always adds a point, at step 0.
        """
        now = int(time.time() * 1000)
        if step is not None:
            before = self._last_steps()
            values = {name: value for name, value in values.items() if step > before.get(name, -1)}
        self._collected += [[name, float(value), now, step or 0] for name, value in values.items()]
        if time.monotonic() - self._flushed_at >= FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Write the collected metrics now."""
        self._flushed_at = time.monotonic()
        if self._collected:
            collected, self._collected = self._collected, []
            self._emit({"kind": "metrics", "values": collected})

    def hold_training(self, training: str, settings: Mapping[str, Any], *, resumes: bool) -> None:
        """Switch to a new MLflow run if this one holds the curves or settings of another training,
        for example of one whose folder was deleted, or that failed at another batch.budget.

        Args:
            training: A fingerprint of the training's folder and of everything that influences the
                curves.
            settings: What `log_params` will get.
            resumes: Whether the training continues from a checkpoint. If so, changed settings do
                not make another training.
        """
        try:
            wanted = None if resumes else _params(settings)
            self.id = run_of_training(self._client, self.id, training, wanted)
            self._spool = self._spool_of(self.id)
        except Exception as error:  # noqa: BLE001  whatever fails, training continues
            logger.warning("MLflow failed: %s", first_line(error))

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Record settings. Nested keys are joined with dots, and long values are cut.

        A resumed run keeps the first value of a key; a different later value becomes the tag
        `resumed.KEY`.
        """
        self._emit({"kind": "params", "values": _params(values)})

    def set_tags(self, values: Mapping[str, Any]) -> None:
        """Set or replace tags."""
        cut = {key: str(value)[:MAX_VALUE_LENGTH] for key, value in values.items()}
        self._emit({"kind": "tags", "values": cut})

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Copy a file, or a folder's files, to `folder` of the run's artifacts."""
        self._emit({"kind": "artifact", "path": str(path), "folder": folder})

    def register_model(self, folder: str | Path, name: str, alias: str) -> None:
        """Register a Hugging Face folder as the newest version of model `name`, with `alias`.

        With an SQLite file the version points to the folder; a tracking server receives a copy.
        """
        self._emit({"kind": "model", "path": str(folder), "name": name, "alias": alias})

    def finish(self, status: str = "FINISHED") -> None:
        """End the run with status FINISHED, FAILED or KILLED, after replaying all of its spools."""
        self.flush()
        self._emit({"kind": "finish", "status": status, "time": int(time.time() * 1000)}, now=True)
        if left := self._spools():
            logger.warning(
                "MLflow still fails; the next job with this storage will send %s",
                ", ".join(map(str, left)),
            )

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        if not self._owns_run:
            self.flush()
            return
        interrupted = error_type is not None and not issubclass(error_type, Exception)
        self.finish("KILLED" if interrupted else "FAILED" if error_type else "FINISHED")

    def _emit(self, line: dict[str, Any], *, now: bool = False) -> None:
        if self._spool.exists() and time.monotonic() < self._retry_at and not now:
            self._keep(line)
            return
        try:
            for spool in self._spools() if line["kind"] == "finish" else [self._spool]:
                replay(self._client, spool)
            send(self._client, self.id, line)
        except Exception as error:  # noqa: BLE001  whatever fails, training continues
            if not self._spool.exists():
                logger.warning("MLflow failed; metrics go to %s for now: %s", self._spool, error)
            self._retry_at = time.monotonic() + RETRY_S
            self._keep(line)

    def _last_steps(self) -> dict[str, int]:
        """Curve -> its last step before this process, in MLflow and in the spools. Read once."""
        if self._logged_before is None:
            try:
                known = [last_steps(self._client, self.id), *map(spooled_steps, self._spools())]
            except Exception as error:  # noqa: BLE001  whatever fails, training continues
                logger.warning(
                    "MLflow failed, so repeated steps will appear twice in the curves: %s",
                    first_line(error),
                )
                known = []
            names = {name for steps in known for name in steps}
            self._logged_before = {
                name: max(steps[name] for steps in known if name in steps) for name in names
            }
        return self._logged_before

    def _spool_of(self, run_id: str) -> Path:
        """Path of this process's spool for a run."""
        return self._folder / f"{run_id}-{os.getpid()}.jsonl"

    def _spools(self) -> list[Path]:
        """The spools of all processes for this run."""
        return sorted(self._folder.glob(f"{self.id}-*.jsonl"))

    def _keep(self, line: dict[str, Any]) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._spool.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"uri": self.uri, "run_id": self.id, **line}) + "\n")
        except OSError as error:
            logger.warning(
                "a line of %s is lost: neither MLflow nor the spool can be written: %s",
                line["kind"],
                error,
            )


def open_run(
    config: TrackingConfig,
    *,
    storage: str,
    name: str,
    parent: Run | None = None,
    resume_key: str | None = None,
) -> Run:
    """Open the run of a job, on the driver.

    Args:
        parent: The pipeline's run, if this job is a stage of a pipeline.
        resume_key: An unfinished run of the same storage with this key is continued. None always
            opens a new run.

    Raises:
        TrackingError: MLflow cannot be reached or rejects the run.
    """
    uri = tracking_uri(config, storage)
    spool = Path(storage) / ".tracking"
    try:
        Path(storage).mkdir(parents=True, exist_ok=True)
        client = connect(uri)
        experiment = find_experiment(client, config.experiment, storage if is_file(uri) else None)
        run_id = start_run(
            client,
            experiment,
            name,
            parent=parent.id if parent else None,
            key=_digest(storage, resume_key),
        )
    except Exception as error:
        raise TrackingError(
            f"tracking.uri {uri!r}: the run could not be opened: {first_line(error)}. Check the "
            "address, or leave tracking.uri out to track runs in an SQLite file in the storage"
        ) from error
    _replay_left(client, uri, run_id, spool)
    return Run(uri=uri, run_id=run_id, spool=str(spool), client=client)


def _replay_left(client: Any, uri: str, run_id: str, folder: Path) -> None:
    """Send the spools that earlier jobs left: those of this run and of runs that have ended."""
    spools: dict[Path, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        with suppress(FileNotFoundError):  # the job that owns it has sent it meanwhile
            spools[path] = list(read_lines(path))
    ended = {
        line["run_id"] for lines in spools.values() for line in lines if line["kind"] == "finish"
    }
    for path, lines in spools.items():
        if not any(line["run_id"] in ended | {run_id} for line in lines):
            continue
        try:
            if any(line["uri"] != uri for line in lines):
                raise TrackingError(f"it belongs to another tracking.uri, {lines[0]['uri']!r}")
            replay(client, path)
        except Exception as error:  # noqa: BLE001  another job's spool must not stop this one
            logger.warning("%s is kept, since it could not be sent: %s", path, first_line(error))


def _digest(storage: str, key: str | None) -> str | None:
    return None if key is None else hashlib.sha256(f"{storage}\n{key}".encode()).hexdigest()


def _params(values: Mapping[str, Any]) -> dict[str, str]:
    """Settings as MLflow holds them: flat, and with long values cut."""
    return {key: str(value)[:MAX_VALUE_LENGTH] for key, value in _flatten(values)}


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
