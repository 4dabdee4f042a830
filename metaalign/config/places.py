"""Types for paths that every node sees and for addresses in object storage."""

import re
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator

_URI = re.compile(r"(s3|gs|abfss?)://(?P<host>[^/?]+)[^?]*?(?P<slash>/*)(\?.*)?$")


def _absolute_path(path: str, expected: str) -> str:
    path = path.removeprefix("file://")
    if not PurePosixPath(path).is_absolute():
        raise ValueError(f"must be {expected}")
    return path.rstrip("/") or "/"


def _on_a_disk(path: str) -> str:
    if "://" in path.removeprefix("file://"):
        raise ValueError(
            "only checkpoints can be kept in object storage (checkpoint.storage); give an absolute "
            "path on a disk that every node of the cluster sees"
        )
    return _absolute_path(
        path,
        "an absolute path or a file:// URI: a job runs in Ray's unpacked copy of the working "
        "directory, where a relative path means nothing",
    )


def _anywhere(place: str) -> str:
    uri = _URI.match(place)
    if uri is None:
        expected = "an absolute path, or an address in object storage such as s3://bucket/runs"
        return _absolute_path(place, expected)
    # container@account is no key; a slash in a key would end the host before its @.
    if ":" in uri["host"].partition("@")[0]:
        raise ValueError(
            "contains a key, which logs and MLflow would show; remove it and use the nodes' own "
            "credentials, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or an instance's role"
        )
    return place[: uri.start("slash")] + place[uri.end("slash") :]


AbsolutePath = Annotated[str, AfterValidator(_on_a_disk)]
"""A path on a disk that every node sees."""

Place = Annotated[str, AfterValidator(_anywhere)]
"""A path on a disk that every node sees, or an address in object storage, which may end with
options such as ?region=eu-central-1."""
