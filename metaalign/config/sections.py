"""Settings that several jobs share. Every section is frozen and refuses unknown keys."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    model_validator,
)

from metaalign.config.places import AbsolutePath


class Section(BaseModel):
    """A group of settings."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    def changed(self, *names: str) -> list[str]:
        """Those of the settings that differ from their defaults. A setting that another one keeps
        from having an effect must not be among them."""
        fields = type(self).model_fields
        return [name for name in names if getattr(self, name) != fields[name].default]


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


class LoraConfig(Section):
    """Low-rank adapters, https://arxiv.org/abs/2106.09685, trained in place of all weights and
    merged on export. Rows share tokens, so there is no adapter dropout: a draw on a shared token
    is not the draw that each sequence would make."""

    rank: int = Field(default=16, ge=1)
    """Rank of each update."""

    alpha: int = Field(default=32, ge=1)
    """Scale of the update, which is multiplied by alpha over rank."""

    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Names of the projections that get an adapter; all-linear is every one but the head."""


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

    context: int | None = Field(default=None, ge=2)
    """Longest sequence to train on, prompt and response together, in tokens. None takes what the
    model's config states. A model that states none, such as Bloom or Mamba, needs it, and its
    export states it; any other may train on shorter sequences, and its export stays as it is."""

    activation_checkpointing: bool = False
    """Keep only each layer's input for the backward pass, and compute the layer once more there:
    much less memory, about a third more time."""

    lora: LoraConfig | None = None
    """Adapters on a pretrained model. Where its vocabulary lacked the control tokens, embeddings
    and head are trained too. None trains all weights."""

    seed: int = Field(default=0, ge=0)
    """Seed of random weights, of new vocabulary rows and of adapters."""

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelConfig":
        if (self.path is None) == (self.architecture is None):
            raise ValueError("give exactly one of path and architecture")
        if self.architecture is not None and "model_type" not in self.architecture:
            raise ValueError("architecture needs a model_type, such as 'llama'")
        if self.architecture is not None and self.lora is not None:
            raise ValueError("lora adapts a pretrained model: give path, not architecture")
        return self


class BatchConfig(Section):
    """What one optimizer step trains on, and how its tokens are laid out in rows."""

    global_batch_size: int = Field(default=64, ge=1)
    """Examples in an optimizer step, over all workers. A step takes whole groups (`group_by`)
    until it holds at least this many."""

    budget: int = Field(default=1024, ge=8)
    """Most tokens in a row. An example with all its responses must fit in one row; in the single
    layout each response with its prompt."""

    rows: int = Field(default=8, ge=1)
    """Most rows in a micro-batch, the part of a step that one worker computes at once. Lower it
    if memory runs out."""

    group_by: Literal["example", "conversation", "meta_prompt"] = "example"
    """Examples with the same value of this form a group, and a step takes groups whole: tokens
    that they share are then computed once. `example` makes each example its own group.
    `meta_prompt` groups examples that have neither System Info nor User Info by conversation."""

    max_group_ratio: float = Field(default=2.0, gt=0)
    """Size of the largest group allowed, as a multiple of global_batch_size. A larger group is an
    error, since one step would have to take all of it."""

    mixture: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] | None = Field(
        default=None, min_length=1
    )
    """Weights by pattern of the source file's path, such as {"*/hh/*": 1, "recipes": 3}: each
    source gets this share of the groups that are drawn. Every file must match exactly one pattern.
    None draws every group once an epoch."""

    chunk_size_mb: int = Field(default=128, ge=1)
    """Size of a chunk of logits, in MiB of float32. If a micro-batch needs several chunks, each is
    recomputed in the backward pass."""


DecayRate = Annotated[float, Field(ge=0, lt=1)]


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

    betas: tuple[DecayRate, DecayRate] = (0.9, 0.95)
    """Adam's decay rates of the first and second moment."""

    epsilon: float = Field(default=1e-8, gt=0)
    """Adam's denominator term."""

    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """Global gradient norm above which gradients are scaled down. None never clips."""

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "OptimizerConfig":
        if self.schedule == "constant" and self.changed("final_ratio"):
            raise ValueError(
                f"final_ratio {self.final_ratio} has no effect with schedule 'constant'; leave it "
                "out, or set schedule to 'cosine' or 'linear'"
            )
        unread = self.changed("betas", "epsilon") if self.name == "sgd" else []
        if unread:
            raise ValueError(
                f"{' and '.join(unread)} have no effect with name 'sgd'; leave them out, or set "
                "name to 'auto' or 'adamw'"
            )
        return self


class ZeroConfig(Section):
    """DeepSpeed's ZeRO."""

    stage: Literal[0, 1, 2, 3] = 3
    """What is cut over the workers: 1 optimizer states, 2 gradients too, 3 parameters too."""

    persistence_threshold: int = Field(default=10_000, ge=0)
    """Parameters below this many elements stay whole on every worker, under stage 3."""

    offload_optimizer: Literal["cpu", "nvme"] | None = None
    """Where the float32 weights and optimizer states rest, and the optimizer runs on the CPU. None
    keeps them on the device. Stages 1 and 2 offload to cpu alone."""

    offload_parameters: Literal["cpu", "nvme"] | None = None
    """Where each worker's cut of the parameters rests, under stage 3. None is the device."""

    nvme_path: AbsolutePath | None = None
    """Folder on a fast local disk of every node, for what is offloaded to nvme."""

    hpz_partition_size: int | None = Field(default=None, ge=2)
    """Workers, those of one node, that hold a second cut of the parameters among themselves, so
    that the backward pass gathers inside the node (ZeRO++), under stage 3. None holds no second."""

    @model_validator(mode="after")
    def _of_the_stage(self) -> "ZeroConfig":
        places = (self.offload_optimizer, self.offload_parameters)
        if self.stage == 0 and any(places):
            raise ValueError("stage 0 cuts nothing, so it offloads nothing; set stage to 3")
        if self.stage < 3 and self.changed("persistence_threshold"):
            raise ValueError(
                f"persistence_threshold has no effect at stage {self.stage}, where every worker "
                "holds all parameters; leave it out, or set stage to 3"
            )
        if self.stage < 3 and (self.offload_parameters or self.hpz_partition_size):
            name = "offload_parameters" if self.offload_parameters else "hpz_partition_size"
            raise ValueError(f"{name} needs stage 3, which cuts the parameters")
        if self.stage < 3 and self.offload_optimizer == "nvme":
            raise ValueError("offload_optimizer nvme needs stage 3; stages 1 and 2 take cpu")
        if self.offload_parameters and not self.offload_optimizer:
            raise ValueError("offload_parameters needs offload_optimizer, which frees more")
        if (self.nvme_path is None) == ("nvme" in places):
            raise ValueError("nvme_path and offloading to nvme go together; give both or neither")
        return self


WorkerCount = Annotated[int, Field(ge=1)]


class WorkersConfig(Section):
    """What Ray Train asks of the cluster."""

    num_workers: WorkerCount | tuple[WorkerCount, WorkerCount] = 1
    """Training processes. Each takes a GPU where `gpu` says so, a CPU elsewhere. Two numbers are
    the fewest and the most: the run takes what there is room for, goes on with what is left when
    workers are lost, and grows again when nodes return, each time from the last checkpoint."""

    resize_interval_s: float | None = Field(default=None, gt=0)
    """Seconds between two looks at whether there is room for more workers, where num_workers is
    two numbers. None is 60."""

    gpu: Literal["auto", "always", "never"] = "auto"
    """auto gives each worker a GPU where the cluster has any now; always waits for GPUs that an
    autoscaler has yet to start; never trains on CPUs."""

    cpus_per_worker: float = Field(default=1, gt=0)
    """CPUs that each worker reserves."""

    max_failures: int = Field(default=3, ge=0)
    """Restarts from the last checkpoint before a failure of a worker ends the job. Growing is no
    failure."""

    @property
    def min_workers(self) -> int:
        """Workers without which nothing starts."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def max_workers(self) -> int:
        """Workers where there is room for all."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    @model_validator(mode="after")
    def _fewest_first(self) -> "WorkersConfig":
        fixed = isinstance(self.num_workers, int)
        if not fixed and self.min_workers >= self.max_workers:
            raise ValueError(
                f"num_workers [{self.min_workers}, {self.max_workers}] must be the fewest and the "
                "most, or one number"
            )
        if fixed and self.resize_interval_s is not None:
            raise ValueError(
                "resize_interval_s has no effect on a fixed num_workers; give the fewest and the "
                "most, such as [1, 4]"
            )
        return self


BestMetric = Literal["loss", "reward_accuracy", "reward_margin"]
"""A held-out metric that can choose a checkpoint; `loss` is better lower, the others higher."""


class HeldOutConfig(Section):
    """What is measured on the held-out split while training."""

    every_steps: int | None = Field(default=None, ge=1)
    """Steps between two measurements. None measures before the first and after the last step."""

    max_examples: int = Field(default=512, ge=1)
    """Held-out examples that are measured, drawn by seed."""

    best_metric: BestMetric | None = None
    """Metric by which a best checkpoint is kept beside the newest: each measurement that beats
    all before it is saved. None keeps none."""

    patience: int | None = Field(default=None, ge=1)
    """Measurements in a row without a better `best_metric` after which training ends. None never
    ends it early."""

    @model_validator(mode="after")
    def _measured(self) -> "HeldOutConfig":
        if self.best_metric is not None and self.every_steps is None:
            raise ValueError("best_metric needs every_steps: the best of several measurements")
        if self.patience is not None and self.best_metric is None:
            raise ValueError("patience needs best_metric: what must get better")
        return self


class TrainingLength(Section):
    """How long to train: epochs, or steps."""

    epochs: float | None = Field(default=1.0, gt=0)
    """Passes over the examples. None where max_steps is given. If an epoch of several examples
    comes to a single optimizer step, the job is refused: lower batch.global_batch_size, or give
    max_steps if that is meant."""

    max_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps. Where both are given, the smaller ends the run."""

    @model_validator(mode="after")
    def _ends(self) -> "TrainingLength":
        if self.epochs is None and self.max_steps is None:
            raise ValueError("give epochs, max_steps or both; a run without either never ends")
        return self
