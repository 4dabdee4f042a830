"""MLflow: one run a job across restarts, children of one pipeline run, and the spool.

Broken when a run is opened is an error; broken later is a warning and a spool of JSON lines that
is replayed once the store answers again: tracking never stops training. This is the only file
that knows MLflow, and it knows nothing of what is tracked. A line of the spool:

    {"kind": "metrics", "values": [["train/loss", 0.69, 1765432100123, 40]]}

where the numbers after the name are the value, the time in milliseconds and the step. MLflow keeps
equal lines once, so a line that is replayed twice does no harm.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from metaalign.config.sections import TrackingConfig
from metaalign.errors import TrackingError

FLUSH_S = 1.0
"""Metrics are collected for this long before they are written together."""

RETRY_S = 20.0
"""After a failure, lines go straight to the spool for this long."""

MAX_VALUE_LENGTH = 500
"""Characters of a parameter or tag that are kept."""

_RESUME_TAG = "metaalign.resume_key"

logger = logging.getLogger(__name__)


def tracking_uri(config: TrackingConfig, storage: str) -> str:
    """Where runs are kept: the configured URI, or an SQLite file in the storage."""
    return config.uri or f"sqlite:///{storage}/mlflow.db"


def check_nodes(config: TrackingConfig, num_nodes: int) -> None:
    """Refuse an SQLite store that several nodes would write.

    Raises:
        TrackingError: names the setting to change.
    """
    if num_nodes > 1 and (config.uri or "sqlite").startswith("sqlite"):
        raise TrackingError(
            f"tracking.uri {config.uri!r} is an SQLite file, and the cluster has {num_nodes} "
            "nodes: SQLite is safe on one node alone. Start `mlflow server` and give its address "
            "as tracking.uri"
        )


class Run:
    """One MLflow run, held by the driver that opened it, or by rank 0 through `attach`.

    As a context manager the driver's Run ends; an attached one writes what it has collected.
    """

    def __init__(self, *, uri: str, run_id: str, spool: str, client: Any = None) -> None:
        self.uri = uri
        self.id = run_id
        self._client = client or _connect(uri)
        self._owns_run = client is not None
        self._folder = Path(spool)
        self._spool = self._folder / f"{run_id}-{os.getpid()}.jsonl"
        self._collected: list[list[Any]] = []
        self._flushed_at = time.monotonic()
        self._retry_at = 0.0

    @property
    def address(self) -> dict[str, str]:
        """Plain values from which another process attaches to this run."""
        return {"uri": self.uri, "run_id": self.id, "spool": str(self._folder)}

    @classmethod
    def attach(cls, address: Mapping[str, str]) -> "Run":
        """The run at `address`, in another process. It never ends the run."""
        return cls(**address)

    def log_metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Add a point to each named curve. Written within about a second, or at `flush`."""
        now = int(time.time() * 1000)
        self._collected += [[name, float(value), now, step or 0] for name, value in values.items()]
        if time.monotonic() - self._flushed_at >= FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Write what `log_metrics` has collected."""
        self._flushed_at = time.monotonic()
        if self._collected:
            collected, self._collected = self._collected, []
            self._emit({"kind": "metrics", "values": collected})

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Record settings: nested keys are joined by dots, long values cut.

        A resumed run keeps its first value; another one becomes the tag `resumed.KEY`.
        """
        flat = {key: str(value)[:MAX_VALUE_LENGTH] for key, value in _flatten(values)}
        self._emit({"kind": "params", "values": flat})

    def set_tags(self, values: Mapping[str, Any]) -> None:
        """Set or replace tags."""
        cut = {key: str(value)[:MAX_VALUE_LENGTH] for key, value in values.items()}
        self._emit({"kind": "tags", "values": cut})

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Keep a copy of a file, or of a folder's files, in `folder` of the run's artifacts."""
        self._emit({"kind": "artifact", "path": str(path), "folder": folder})

    def register_model(self, folder: str | Path, name: str, alias: str) -> None:
        """Register a Hugging Face folder as the newest version of `name`, and give it `alias`.

        Beside an SQLite store the version points at the folder; a server gets a copy.
        """
        self._emit({"kind": "model", "path": str(folder), "name": name, "alias": alias})

    def finish(self, status: str = "FINISHED") -> None:
        """End the run: FINISHED, FAILED or KILLED."""
        self.flush()
        self._emit({"kind": "finish", "status": status, "time": int(time.time() * 1000)}, now=True)
        if self._spool.exists():
            logger.warning(
                "tracking is still broken; %s is replayed by the next job with this storage",
                self._spool,
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
            replay(self._client, self._spool)
            send(self._client, self.id, line)
        except Exception as error:  # noqa: BLE001  whatever breaks, training goes on
            if not self._spool.exists():
                logger.warning("tracking is broken, keeping a spool at %s: %s", self._spool, error)
            self._retry_at = time.monotonic() + RETRY_S
            self._keep(line)

    def _keep(self, line: dict[str, Any]) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._spool.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"run_id": self.id, **line}) + "\n")
        except OSError as error:
            logger.warning("tracking lost a line of %s: %s", line["kind"], error)


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
        parent: The pipeline's run, of which this one is a stage.
        resume_key: A run of the same storage that was opened with this key and did not finish is
            continued.

    Raises:
        TrackingError: the tracking store does not work.
    """
    uri = tracking_uri(config, storage)
    spool = Path(storage) / ".tracking"
    try:
        Path(storage).mkdir(parents=True, exist_ok=True)
        client = _connect(uri)
        experiment = _experiment(client, config.experiment, storage if config.uri is None else None)
        run_id = _start(client, experiment, name, parent, _digest(storage, resume_key))
        for left in sorted(spool.glob("*.jsonl")):
            if left.name.startswith(run_id) or _has_finish(left):
                replay(client, left)
    except Exception as error:
        raise TrackingError(
            f"tracking.uri {uri!r}: the run could not be opened: {_first_line(error)}. Check the "
            "address, or leave tracking.uri out to keep runs in the storage"
        ) from error
    return Run(uri=uri, run_id=run_id, spool=str(spool), client=client)


def send(client: Any, run_id: str, line: Mapping[str, Any]) -> None:
    """Write one line to MLflow. What MLflow calls invalid is dropped with a warning."""
    from mlflow.exceptions import MlflowException

    try:
        _SENDERS[line["kind"]](client, run_id, line)
    except MlflowException as error:
        if error.error_code != "INVALID_PARAMETER_VALUE":
            raise
        logger.warning("tracking refused a line of %s: %s", line["kind"], _first_line(error))


def replay(client: Any, spool: Path) -> None:
    """Write a spool's lines to MLflow, then delete it. A line that was cut short is skipped."""
    if not spool.exists():
        return
    for line in _read(spool):
        send(client, line["run_id"], line)
    spool.unlink()


def _read(spool: Path) -> Iterable[dict[str, Any]]:
    for text in spool.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(text)
        except json.JSONDecodeError:
            logger.warning("%s: a line was cut short", spool)


def _has_finish(spool: Path) -> bool:
    return any(line["kind"] == "finish" for line in _read(spool))


def _connect(uri: str) -> Any:
    # Few and short retries, since MLflow's own last for minutes and would hold up training.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    # Imported here: it takes seconds, and only the driver and rank 0 need it.
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _experiment(client: Any, name: str, storage: str | None) -> str:
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        location = None if storage is None else (Path(storage) / "artifacts").as_uri()
        return client.create_experiment(name, artifact_location=location)
    if experiment.lifecycle_stage != "active":
        raise TrackingError(f"tracking.experiment {name!r} was deleted; restore or rename it")
    return experiment.experiment_id


def _start(client: Any, experiment: str, name: str, parent: Run | None, key: str | None) -> str:
    tags = {} if parent is None else {"mlflow.parentRunId": parent.id}
    if key is not None:
        tags[_RESUME_TAG] = key
        wanted = f"tags.`{_RESUME_TAG}` = '{key}' and attributes.status != 'FINISHED'"
        found = client.search_runs([experiment], wanted, max_results=1)
        if found:
            run_id = found[0].info.run_id
            client.update_run(run_id, status="RUNNING")
            for tag, value in tags.items():
                client.set_tag(run_id, tag, value)
            return run_id
    return client.create_run(experiment, tags=tags, run_name=name).info.run_id


def _digest(storage: str, key: str | None) -> str | None:
    return None if key is None else hashlib.sha256(f"{storage}\n{key}".encode()).hexdigest()


def _send_metrics(client: Any, run_id: str, line: Mapping[str, Any]) -> None:
    from mlflow.entities import Metric

    for part in _parts(line["values"], 1000):
        client.log_batch(run_id, metrics=[Metric(*point) for point in part])


def _send_params(client: Any, run_id: str, line: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    known = client.get_run(run_id).data.params
    new = [Param(key, value) for key, value in line["values"].items() if key not in known]
    changed = {
        f"resumed.{key}": value
        for key, value in line["values"].items()
        if known.get(key, value) != value
    }
    for part in _parts(new, 100):
        client.log_batch(run_id, params=part)
    _send_tags(client, run_id, {"values": changed})


def _send_tags(client: Any, run_id: str, line: Mapping[str, Any]) -> None:
    from mlflow.entities import RunTag

    tags = [RunTag(key, value) for key, value in line["values"].items()]
    for part in _parts(tags, 100):
        client.log_batch(run_id, tags=part)


def _send_artifact(client: Any, run_id: str, line: Mapping[str, Any]) -> None:
    send_path = client.log_artifacts if Path(line["path"]).is_dir() else client.log_artifact
    send_path(run_id, line["path"], line["folder"])


def _send_model(client: Any, run_id: str, line: Mapping[str, Any]) -> None:
    folder, name = Path(line["path"]), line["name"]
    source = folder.as_uri()
    if not client.tracking_uri.startswith("sqlite"):
        client.log_artifacts(run_id, str(folder), folder.name)
        source = f"{client.get_run(run_id).info.artifact_uri}/{folder.name}"
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    version = client.create_model_version(name, source, run_id).version
    client.set_registered_model_alias(name, line["alias"], version)


def _send_finish(client: Any, run_id: str, line: Mapping[str, Any]) -> None:
    client.set_terminated(run_id, line["status"], line["time"])


_SENDERS = {
    "metrics": _send_metrics,
    "params": _send_params,
    "tags": _send_tags,
    "artifact": _send_artifact,
    "model": _send_model,
    "finish": _send_finish,
}


def _parts(values: list[Any], size: int) -> Iterable[list[Any]]:
    """MLflow takes at most 1,000 metrics, 100 parameters or 100 tags in one request."""
    return (values[start : start + size] for start in range(0, len(values), size))


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
