"""One MLflow run a job across restarts, children of one pipeline run, and the spool.

Broken when a run is opened is an error; broken later is a warning and a spool of JSON lines that
is replayed once the store answers again: tracking never stops training.
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
"""Metrics are collected for this long before they are written together."""

RETRY_S = 20.0
"""After a failure, lines go straight to the spool for this long."""

MAX_VALUE_LENGTH = 500
"""Characters of a parameter or tag that are kept."""

logger = logging.getLogger(__name__)


def tracking_uri(config: TrackingConfig, storage: str) -> str:
    """Where runs are kept: the configured URI, or an SQLite file in the storage."""
    return config.uri or f"sqlite:///{storage}/mlflow.db"


def check_nodes(config: TrackingConfig, num_nodes: int) -> None:
    """Refuse an SQLite store that several nodes would write.

    Raises:
        TrackingError: names the setting to change.
    """
    if num_nodes > 1 and (config.uri is None or is_file(config.uri)):
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
        """Plain values from which another process attaches to this run."""
        return {"uri": self.uri, "run_id": self.id, "spool": str(self._folder)}

    @classmethod
    def attach(cls, address: Mapping[str, str]) -> "Run":
        """The run at `address`, in another process. It never ends the run."""
        return cls(**address)

    def log_metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Add a point to each named curve. Written within about a second, or at `flush`.

        Args:
            step: A point is skipped if an earlier process has logged this step of its curve: a
                resume takes the steps after the last checkpoint again. None adds a point always.
        """
        now = int(time.time() * 1000)
        if step is not None:
            before = self._last_steps()
            values = {name: value for name, value in values.items() if step > before.get(name, -1)}
        self._collected += [[name, float(value), now, step or 0] for name, value in values.items()]
        if time.monotonic() - self._flushed_at >= FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Write what `log_metrics` has collected."""
        self._flushed_at = time.monotonic()
        if self._collected:
            collected, self._collected = self._collected, []
            self._emit({"kind": "metrics", "values": collected})

    def hold_training(self, training: str) -> None:
        """Let this run hold one training alone. A new run takes its place if it holds another,
        such as one with another learning rate whose folder was deleted since.

        Args:
            training: A fingerprint of all that bends the curves.
        """
        try:
            self.id = run_of_training(self._client, self.id, training)
            self._spool = self._spool_of(self.id)
        except Exception as error:  # noqa: BLE001  whatever breaks, training goes on
            logger.warning("tracking is broken: %s", first_line(error))

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
        """End the run: FINISHED, FAILED or KILLED. Replays the spool of every process first."""
        self.flush()
        self._emit({"kind": "finish", "status": status, "time": int(time.time() * 1000)}, now=True)
        if left := self._spools():
            logger.warning(
                "tracking is still broken; %s is replayed by the next job with this storage",
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
        except Exception as error:  # noqa: BLE001  whatever breaks, training goes on
            if not self._spool.exists():
                logger.warning("tracking is broken, keeping a spool at %s: %s", self._spool, error)
            self._retry_at = time.monotonic() + RETRY_S
            self._keep(line)

    def _last_steps(self) -> dict[str, int]:
        """The last step of every curve when this process first asks: what was written, and what
        earlier processes left in their spools."""
        if self._logged_before is None:
            try:
                known = [last_steps(self._client, self.id), *map(spooled_steps, self._spools())]
            except Exception as error:  # noqa: BLE001  whatever breaks, training goes on
                logger.warning(
                    "tracking is broken, so points that are logged again will stand twice: %s",
                    first_line(error),
                )
                known = []
            names = {name for steps in known for name in steps}
            self._logged_before = {
                name: max(steps[name] for steps in known if name in steps) for name in names
            }
        return self._logged_before

    def _spool_of(self, run_id: str) -> Path:
        """This process's spool."""
        return self._folder / f"{run_id}-{os.getpid()}.jsonl"

    def _spools(self) -> list[Path]:
        """Every process's spool of this run."""
        return sorted(self._folder.glob(f"{self.id}-*.jsonl"))

    def _keep(self, line: dict[str, Any]) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._spool.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"uri": self.uri, "run_id": self.id, **line}) + "\n")
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
            "address, or leave tracking.uri out to keep runs in the storage"
        ) from error
    _replay_left(client, uri, run_id, spool)
    return Run(uri=uri, run_id=run_id, spool=str(spool), client=client)


def _replay_left(client: Any, uri: str, run_id: str, folder: Path) -> None:
    """Replay what earlier jobs left: spools of this run, and of runs whose job has ended."""
    spools: dict[Path, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        with suppress(FileNotFoundError):  # replayed meanwhile by the job that owns it
            spools[path] = list(read_lines(path))
    ended = {
        line["run_id"] for lines in spools.values() for line in lines if line["kind"] == "finish"
    }
    for path, lines in spools.items():
        if not any(line["run_id"] in ended | {run_id} for line in lines):
            continue
        try:
            if any(line["uri"] != uri for line in lines):
                raise TrackingError(f"it is of another tracking.uri, {lines[0]['uri']!r}")
            replay(client, path)
        except Exception as error:  # noqa: BLE001  what is left of another job stops no job
            logger.warning("%s is kept: it could not be replayed: %s", path, first_line(error))


def _digest(storage: str, key: str | None) -> str | None:
    return None if key is None else hashlib.sha256(f"{storage}\n{key}".encode()).hexdigest()


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
