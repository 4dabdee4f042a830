"""Settings of the serve job: a Hugging Face folder in, an HTTP endpoint out."""

from typing import Annotated, Literal

from pydantic import Field

from metaalign.config.places import AbsolutePath
from metaalign.config.sections import Section


class ServeConfig(Section):
    """`python -m ray_jobs.serve CONFIG.yaml section.key=value ...`"""

    storage: AbsolutePath
    """Root of all outputs: an absolute path or a file:// URI that every node sees."""

    model: str = "model"
    """Hugging Face folder that export wrote: its name under the storage, or an absolute path."""

    name: str = Field(default="metaalign", min_length=1)
    """Model name that clients ask for."""

    host: str = "127.0.0.1"
    """Address that the endpoint listens on. 0.0.0.0 is every address of the machine."""

    port: int = Field(default=8000, ge=1, le=65535)
    """TCP port of the endpoint."""

    replicas: int = Field(default=1, ge=1)
    """Copies of the model."""

    gpus_per_replica: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """GPUs that each copy of the model reserves. auto is 1 if the cluster has a GPU when the job
    starts, and 0 otherwise, which serves on CPUs."""

    max_batch_size: int = Field(default=16, ge=1)
    """Requests decoded together."""

    batch_wait_s: float = Field(default=0.01, ge=0)
    """Seconds that a request waits at most for others to join its batch."""

    max_tokens: int = Field(default=256, ge=1)
    """Most tokens in an answer, for requests that give no limit."""
