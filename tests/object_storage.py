"""A real S3 server of the test's own, with an empty bucket."""

from collections.abc import Iterator

import boto3
import httpx
import pytest
from moto.server import ThreadedMotoServer

BUCKET = "bucket"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadedMotoServer]:
    """A server with an empty bucket."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "key")
    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    httpx.post(f"{address}/moto-api/reset").raise_for_status()  # what it holds is the process's own
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    yield server
    server.stop()


def address_of(server: ThreadedMotoServer, bucket: str, folder: str) -> str:
    """The address of a folder in a bucket, or of a file, as a setting names it."""
    host, port = server.get_host_and_port()
    return f"s3://{bucket}/{folder}?region=us-east-1&scheme=http&endpoint_override={host}:{port}"
