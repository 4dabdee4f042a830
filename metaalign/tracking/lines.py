"""Lines of the spool, and how each is written to MLflow. The only file that imports MLflow.

The spool is a file of JSON lines that could not be sent to MLflow yet. One line:

    {"uri": "http://mlflow:5000", "run_id": "a654d7...", "kind": "metrics",
     "values": [["train/loss", 0.69, 1765432100123, 40]]}

The numbers after the metric's name are the value, the time in milliseconds and the step. Replaying
a line twice does no harm. A line that MLflow will never accept is dropped with a warning.
"""

import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from metaalign.errors import TrackingError

_LASTING_CODES = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED")
_LASTING_ERRORS = (FileNotFoundError, ImportError)
"""Errors that a retry would meet again."""

RESUME_TAG = "metaalign.resume_key"
TRAINING_TAG = "metaalign.training"
"""Tag with the fingerprint of the training whose curves a run holds."""

logger = logging.getLogger(__name__)


def send(client: Any, run_id: str, line: Mapping[str, Any]) -> None:
    """Write one line to MLflow. A line that MLflow rejects for good is dropped with a warning."""
    from mlflow.exceptions import MlflowException

    try:
        _SENDERS[line["kind"]](client, run_id, line)
    except (MlflowException, *_LASTING_ERRORS) as error:
        if isinstance(error, MlflowException) and error.error_code not in _LASTING_CODES:
            raise
        logger.warning("MLflow rejected a line of %s: %s", line["kind"], first_line(error))


def replay(client: Any, spool: Path) -> None:
    """Write a spool's lines to MLflow, then delete the spool. Incomplete lines are skipped."""
    if not spool.exists():
        return
    for line in read_lines(spool):
        send(client, line["run_id"], line)
    spool.unlink()


def read_lines(spool: Path) -> Iterable[dict[str, Any]]:
    """A spool's lines. An incomplete line is skipped with a warning."""
    for text in spool.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(text)
        except json.JSONDecodeError:
            logger.warning("%s: an incomplete line was skipped", spool)


def is_file(uri: str) -> bool:
    """Whether a tracking URI is an SQLite file."""
    return uri.startswith("sqlite")


def connect(uri: str) -> Any:
    """An MLflow client with short timeouts."""
    # MLflow's default retries last for minutes and would hold up training.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    # Imported here: it takes seconds, and only the driver and rank 0 need it.
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def find_experiment(client: Any, name: str, storage: str | None) -> str:
    """The id of the experiment with this name, which is created if there is none."""
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        location = None if storage is None else (Path(storage) / "artifacts").as_uri()
        kind = {"mlflow.experimentKind": "custom_model_development"}  # which pages MLflow shows
        return client.create_experiment(name, artifact_location=location, tags=kind)
    if experiment.lifecycle_stage != "active":
        raise TrackingError(f"tracking.experiment {name!r} was deleted; restore or rename it")
    return experiment.experiment_id


def start_run(
    client: Any, experiment: str, name: str, *, parent: str | None, key: str | None
) -> str:
    """The id of the unfinished run with this resume key; if there is none, of a new run."""
    tags = {} if parent is None else {"mlflow.parentRunId": parent}
    if key is not None:
        tags[RESUME_TAG] = key
        wanted = f"tags.`{RESUME_TAG}` = '{key}' and attributes.status != 'FINISHED'"
        found = client.search_runs([experiment], wanted, max_results=1)
        if found:
            run_id = found[0].info.run_id
            client.update_run(run_id, status="RUNNING")
            for tag, value in tags.items():
                client.set_tag(run_id, tag, value)
            return run_id
    return client.create_run(experiment, tags=tags, run_name=name).info.run_id


def last_steps(client: Any, run_id: str) -> dict[str, int]:
    """Curve -> its last step in MLflow."""
    return {point.key: point.step for point in client.get_run(run_id).data.to_proto().metrics}


def spooled_steps(spool: Path) -> dict[str, int]:
    """Curve -> its last step in a spool."""
    found: dict[str, int] = {}
    for line in read_lines(spool):
        for name, _, _, step in line["values"] if line["kind"] == "metrics" else ():
            found[name] = max(step, found.get(name, step))
    return found


def run_of_training(
    client: Any, run_id: str, training: str, settings: Mapping[str, str] | None
) -> str:
    """The id of a run that holds the curves and settings of this training only.

    This is the given run, unless it holds those of another training. In that case the given run is
    ended, and a new run takes over its name, parent and resume key.

    Args:
        settings: Parameters that must not differ from those of the run; None if they may.
    """
    run = client.get_run(run_id)
    params, settings = run.data.params, settings or {}
    changed = any(params.get(key, value) != value for key, value in settings.items())
    if changed or run.data.tags.get(TRAINING_TAG, training) != training:
        kept = ("mlflow.parentRunId", RESUME_TAG)
        tags = {key: run.data.tags[key] for key in kept if key in run.data.tags}
        if RESUME_TAG in tags:
            client.delete_tag(run_id, RESUME_TAG)
        client.set_terminated(run_id, "KILLED")
        run = client.create_run(run.info.experiment_id, tags=tags, run_name=run.info.run_name)
    client.set_tag(run.info.run_id, TRAINING_TAG, training)
    return run.info.run_id


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
    if not is_file(client.tracking_uri):
        client.log_artifacts(run_id, str(folder), folder.name)
        source = f"{client.get_run(run_id).info.artifact_uri}/{folder.name}"
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    known = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    same = [version for version in known if version.source == source]
    version = (same or [client.create_model_version(name, source, run_id)])[0].version
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


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class if it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
