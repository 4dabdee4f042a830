"""Settings of the serve job, which serves a Hugging Face folder over HTTP."""

from typing import Annotated, Literal

from pydantic import Field

from metaalign.config.places import AbsolutePath
from metaalign.config.sections import Section


class ServeConfig(Section):
    """`python -m ray_jobs.serve CONFIG.yaml section.key=value ...`"""

    storage: AbsolutePath
    """Root of all outputs: an absolute path or a file:// URI that every node sees."""

    model: str = "model"
    """Hugging Face folder written by the export job: a name under the storage or an absolute
    path."""

    name: str = Field(default="metaalign", min_length=1)
    """Model name that clients send in their requests."""

    host: str = "127.0.0.1"
    """Address that the endpoint listens on. 0.0.0.0 listens on every address of the machine."""

    port: int = Field(default=8000, ge=1, le=65535)
    """TCP port of the endpoint."""

    replicas: int = Field(default=1, ge=1)
    """Copies of the model that answer requests in parallel."""

    gpus_per_replica: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """GPUs that each copy of the model reserves. auto is 1 if the cluster has a GPU when the job
    starts; otherwise it is 0, and the model runs on CPUs."""

    max_batch_size: int = Field(default=16, ge=1)
    """Most requests in one decoding batch."""

    batch_wait_s: float = Field(default=0.01, ge=0)
    """Longest time in seconds that a request waits for others to join its batch."""

    max_tokens: int = Field(default=256, ge=1)
    """Most tokens of an answer if the request sets no limit."""
