"""Settings that several jobs share. Every section is frozen and refuses unknown keys."""

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)


class Section(BaseModel):
    """A group of settings."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def _absolute(path: str) -> str:
    path = path.removeprefix("file://")
    if "://" in path:
        raise ValueError(
            "object storage is not supported yet; give an absolute path on a disk that every "
            "node of the cluster sees"
        )
    if not PurePosixPath(path).is_absolute():
        raise ValueError(
            "must be an absolute path or a file:// URI: a job runs in Ray's unpacked copy of the "
            "working directory, where a relative path means nothing"
        )
    return path.rstrip("/") or "/"


AbsolutePath = Annotated[str, AfterValidator(_absolute)]

FolderName = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
"""The name of a folder under the storage, never one of its parents."""


def _absolute_sqlite(uri: str | None) -> str | None:
    path = (uri or "").removeprefix("sqlite:///")
    if path != (uri or "") and not path.startswith("/"):
        raise ValueError(
            f"{uri!r} is a relative path, and a job's working directory is thrown away; write "
            f"sqlite:////absolute/{path}"
        )
    return uri


class TrackingConfig(Section):
    """Where MLflow keeps the runs."""

    uri: Annotated[str | None, AfterValidator(_absolute_sqlite)] = None
    """Tracking URI. None is an SQLite file, `mlflow.db`, in the storage."""

    experiment: str = Field(default="metaalign", min_length=1)
    """Name of the MLflow experiment."""

    registered_model: str | None = None
    """Name under which an exported model is registered. None registers nothing."""

    alias: str = Field(default="newest", pattern=r"^[\w-]+$")
    """Alias that the newest registered version gets. MLflow keeps `latest` and `v1` for itself."""

    @field_validator("alias")
    @classmethod
    def _not_reserved(cls, alias: str) -> str:
        if alias.lower() == "latest" or alias.lower().removeprefix("v").isdigit():
            raise ValueError("is reserved by MLflow; choose another alias")
        return alias


class ModelConfig(Section):
    """The model that training starts from: a folder or hub name, or an architecture."""

    path: str | None = None
    """Hugging Face folder, a folder's name under the storage, or a hub name. None: architecture."""

    architecture: dict[str, Any] | None = None
    """Keys of a transformers config, `model_type` among them, for random weights."""

    layout: Literal["auto", "tree", "single"] = "auto"
    """Rows of prefix trees, or one sequence a row; auto takes trees where the probe finds them
    exact."""

    attention: Literal["auto", "sdpa", "flex_attention"] = "auto"
    """Attention kernel. auto is FlexAttention on CUDA and SDPA elsewhere."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the forward and backward pass. auto is bfloat16 on CUDA, float32 elsewhere."""

    seed: int = Field(default=0, ge=0)
    """Seed of random weights and of new vocabulary rows."""

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelConfig":
        if (self.path is None) == (self.architecture is None):
            raise ValueError("give exactly one of path and architecture")
        if self.architecture is not None and "model_type" not in self.architecture:
            raise ValueError("architecture needs a model_type, such as 'llama'")
        return self


class BatchConfig(Section):
    """What one optimizer step trains on, and how it is laid out."""

    global_batch_size: int = Field(default=64, ge=1)
    """Examples in an optimizer step, over all workers. A step takes whole groups until it holds
    at least as many."""

    budget: int = Field(default=1024, ge=8)
    """Length of a row, in tokens. No example may be longer."""

    rows: int = Field(default=8, ge=1)
    """Rows in a micro-batch of one worker."""

    group_by: Literal["example", "conversation", "meta_prompt"] = "example"
    """Examples that share this are drawn into one step together, so that they share tokens."""

    chunk_size_mb: int = Field(default=64, ge=1)
    """Size of one chunk of logits, in MiB of float32. Fewer bytes, more chunks."""


class OptimizerConfig(Section):
    """The optimizer and its schedule."""

    name: Literal["auto", "adamw", "sgd"] = "auto"
    """auto is the fused AdamW of the hardware: DeepSpeed's FusedAdam on CUDA, its CPUAdam on a
    CPU. adamw is torch's fused AdamW, sgd plain SGD."""

    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate, reached after warmup."""

    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the decay after warmup."""

    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    """Share of the optimizer steps spent in linear warmup."""

    final_ratio: float = Field(default=0.0, ge=0, le=1)
    """Learning rate at the last step, as a share of the peak."""

    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of matrices and embeddings. Vectors, such as norms and biases, get
    none."""

    betas: tuple[float, float] = (0.9, 0.95)
    """Adam's decay rates of the first and second moment."""

    epsilon: float = Field(default=1e-8, gt=0)
    """Adam's denominator term."""

    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """Global gradient norm above which gradients are scaled down. None never clips."""


class ZeroConfig(Section):
    """DeepSpeed's ZeRO."""

    stage: Literal[0, 1, 2, 3] = 3
    """What is cut over the workers: 1 optimizer states, 2 gradients too, 3 parameters too."""

    persistence_threshold: int = Field(default=10_000, ge=0)
    """Parameters below this many elements stay whole on every worker, under stage 3."""


class WorkersConfig(Section):
    """What Ray Train asks of the cluster."""

    num_workers: int = Field(default=1, ge=1)
    """Training processes. Each takes a GPU where `gpu` says so, a CPU elsewhere."""

    gpu: Literal["auto", "always", "never"] = "auto"
    """auto gives each worker a GPU where the cluster has any now; always waits for GPUs that an
    autoscaler has yet to start; never trains on CPUs."""

    cpus_per_worker: float = Field(default=1, gt=0)
    """CPUs that each worker reserves."""

    max_failures: int = Field(default=3, ge=0)
    """Restarts from the last checkpoint before a failure of a worker ends the job."""


class CheckpointConfig(Section):
    """When training saves."""

    every_steps: int | None = Field(default=None, ge=1)
    """Steps between two checkpoints. None saves at the end alone."""

    keep: int = Field(default=2, ge=1)
    """Newest checkpoints that are kept."""


class HeldOutConfig(Section):
    """What is measured on the held-out split while training."""

    every_steps: int | None = Field(default=None, ge=1)
    """Steps between two measurements. None measures before the first and after the last step."""

    max_examples: int = Field(default=512, ge=1)
    """Held-out examples that are measured, drawn by seed."""


class TrainingLength(Section):
    """How long to train: epochs, or steps."""

    epochs: float | None = Field(default=1.0, gt=0)
    """Passes over the examples. None where max_steps is given."""

    max_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps. Where both are given, the smaller ends the run."""

    @model_validator(mode="after")
    def _ends(self) -> "TrainingLength":
        if self.epochs is None and self.max_steps is None:
            raise ValueError("give epochs, max_steps or both; a run without either never ends")
        return self
