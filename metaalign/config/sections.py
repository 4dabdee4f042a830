"""Settings that several jobs share. Every section is frozen and refuses unknown keys."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from metaalign.config.places import AbsolutePath


class Section(BaseModel):
    """A group of settings."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    def changed(self, *names: str) -> list[str]:
        """Those of the named settings that differ from their defaults. Validators refuse them if
        another setting keeps them from having an effect."""
        fields = type(self).model_fields
        return [name for name in names if getattr(self, name) != fields[name].default]


FolderName = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
"""Name of a folder directly under the storage."""


def _absolute_sqlite(uri: str | None) -> str | None:
    path = (uri or "").removeprefix("sqlite:///")
    if path != (uri or "") and not path.startswith("/"):
        raise ValueError(
            f"{uri!r} is a relative path, and a job's working directory is deleted; write "
            f"sqlite:////absolute/{path}"
        )
    return uri


class TrackingConfig(Section):
    """The MLflow server or file that stores the runs."""

    uri: Annotated[str | None, AfterValidator(_absolute_sqlite)] = None
    """Tracking URI. None uses the SQLite file `mlflow.db` in the storage."""

    experiment: str = Field(default="metaalign", min_length=1)
    """Name of the MLflow experiment."""


class LoraConfig(Section):
    """Low-rank adapters, https://arxiv.org/abs/2106.09685, trained instead of the weights, and
    merged on export. There is no adapter dropout: sequences that share tokens in a row would also
    share the dropout masks of these tokens."""

    rank: int = Field(default=16, ge=1)
    """Rank of each update."""

    alpha: int = Field(default=32, ge=1)
    """Scale of the update: it is multiplied by alpha / rank."""

    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Names of the projections that get an adapter. all-linear selects all except the head."""


class ModelConfig(Section):
    """The initial model: a pretrained one, or an architecture with random weights."""

    path: str | None = None
    """Hugging Face folder, a folder's name under the storage, or a hub name. None uses
    `architecture`."""

    architecture: dict[str, Any] | None = None
    """Keys of a transformers config, including `model_type`. The model gets random weights. None
    uses `path`."""

    layout: Literal["auto", "tree", "single"] = "auto"
    """tree packs prefix trees into rows, so that shared prefixes are computed once; single puts one
    sequence in a row. auto uses tree if the probe finds it exact for the model."""

    attention: Literal["auto", "sdpa", "flex_attention"] = "auto"
    """Attention kernel. auto is FlexAttention on CUDA and SDPA on a CPU."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the forward and backward pass. auto is bfloat16 on CUDA, float32 on a CPU."""

    context: int | None = Field(default=None, ge=2)
    """Longest sequence to train on, prompt and response together, in tokens. None uses the context
    length in the model's config. If the config has none, as for Bloom or Mamba, this setting is
    required and is written into the exported config. Otherwise it may only be shorter, and the
    exported config keeps the model's own."""

    activation_checkpointing: bool = False
    """Keep only each layer's input for the backward pass, and recompute the layer there. Needs much
    less memory and about a third more time."""

    lora: LoraConfig | None = None
    """Trains adapters on a pretrained model. If its vocabulary lacks the control tokens, embeddings
    and head are trained too. None trains all weights."""

    seed: int = Field(default=0, ge=0)
    """Seed of random weights, new vocabulary rows and adapters."""

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelConfig":
        if (self.path is None) == (self.architecture is None):
            raise ValueError("give exactly one of path and architecture")
        if self.architecture is not None and "model_type" not in self.architecture:
            raise ValueError("architecture needs a model_type, such as 'llama'")
        if self.architecture is not None and self.lora is not None:
            raise ValueError("lora adapts a pretrained model: give path, not architecture")
        return self


DecayRate = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Section):
    """The optimizer and its learning-rate schedule."""

    name: Literal["auto", "adamw", "sgd"] = "auto"
    """auto is DeepSpeed's fused AdamW for the device: FusedAdam on CUDA, DeepSpeedCPUAdam on a CPU.
    adamw is torch's fused AdamW; sgd is SGD without momentum."""

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
    """Term that Adam adds to the denominator."""

    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """Global gradient norm above which gradients are scaled down to it. None disables clipping."""

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
    """DeepSpeed's ZeRO: partitioning over the workers, and offloading."""

    stage: Literal[0, 1, 2, 3] = 3
    """What is partitioned over the workers: 0 nothing, 1 optimizer states, 2 also gradients, 3 also
    parameters."""

    persistence_threshold: int = Field(default=10_000, ge=0)
    """At stage 3, parameters with fewer elements than this stay whole on every worker."""

    offload_optimizer: Literal["cpu", "nvme"] | None = None
    """Where the float32 weights and optimizer states are stored. The optimizer then runs on the
    CPU. None keeps them on the device. Stages 1 and 2 can offload only to cpu."""

    offload_parameters: Literal["cpu", "nvme"] | None = None
    """Where each worker's partition of the parameters is stored, at stage 3. None keeps it on the
    device."""

    nvme_path: AbsolutePath | None = None
    """Folder for offloading to nvme, on a fast local disk of every node."""

    hpz_partition_size: int | None = Field(default=None, ge=2)
    """Number of workers per node, each of which stores a second partition of the parameters, so
    that the backward pass gathers them within the node (hpZ of ZeRO++, at stage 3). None stores no
    second partition."""

    @model_validator(mode="after")
    def _of_the_stage(self) -> "ZeroConfig":
        places = (self.offload_optimizer, self.offload_parameters)
        if self.stage == 0 and any(places):
            raise ValueError("stage 0 partitions nothing, so it cannot offload; set stage to 3")
        if self.stage < 3 and self.changed("persistence_threshold"):
            raise ValueError(
                f"persistence_threshold has no effect at stage {self.stage}, where every worker "
                "holds all parameters; leave it out, or set stage to 3"
            )
        if self.stage < 3 and (self.offload_parameters or self.hpz_partition_size):
            name = "offload_parameters" if self.offload_parameters else "hpz_partition_size"
            raise ValueError(f"{name} needs stage 3, which partitions the parameters")
        if self.stage < 3 and self.offload_optimizer == "nvme":
            raise ValueError("offload_optimizer nvme needs stage 3; stages 1 and 2 allow cpu")
        if self.offload_parameters and not self.offload_optimizer:
            raise ValueError("offload_parameters needs offload_optimizer, which frees more memory")
        if (self.nvme_path is None) == ("nvme" in places):
            raise ValueError("offloading to nvme needs nvme_path, and only then; set both or none")
        return self


WorkerCount = Annotated[int, Field(ge=1)]


class WorkersConfig(Section):
    """The training processes and their resources."""

    num_workers: WorkerCount | tuple[WorkerCount, WorkerCount] = 1
    """Number of training processes, on GPUs or CPUs as `gpu` says. Two numbers give the smallest
    and the largest: the run starts as many as there is room for, continues with fewer when workers
    are lost, and grows again when nodes return, each time from the last checkpoint."""

    resize_interval_s: float | None = Field(default=None, gt=0)
    """Seconds between two checks for room for more workers, if num_workers is two numbers. None is
    60."""

    gpu: Literal["auto", "always", "never"] = "auto"
    """auto gives each worker a GPU if the cluster has GPUs now, otherwise CPUs. always gives GPUs,
    and waits for an autoscaler to start them. never uses CPUs."""

    cpus_per_worker: float = Field(default=1, gt=0)
    """Number of CPUs that each worker reserves."""

    max_failures: int = Field(default=3, ge=0)
    """Number of restarts from the last checkpoint after failed workers; the next failure ends the
    job. Growing does not count as a failure."""

    @property
    def min_workers(self) -> int:
        """Smallest number of workers with which the run starts."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def max_workers(self) -> int:
        """Largest number of workers that the run uses."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    @model_validator(mode="after")
    def _fewest_first(self) -> "WorkersConfig":
        fixed = isinstance(self.num_workers, int)
        if not fixed and self.min_workers >= self.max_workers:
            raise ValueError(
                f"num_workers [{self.min_workers}, {self.max_workers}] must be the smallest and "
                "the largest number, or one number"
            )
        if fixed and self.resize_interval_s is not None:
            raise ValueError(
                "resize_interval_s has no effect on a fixed num_workers; give the smallest and the "
                "largest number, such as [1, 4]"
            )
        return self


BestMetric = Literal["loss", "reward_accuracy", "reward_margin"]
"""A held-out metric that can select a checkpoint. Lower is better for `loss`, else higher."""


class HeldOutConfig(Section):
    """Measurements on the held-out split."""

    every_steps: int | None = Field(default=None, ge=1)
    """Number of optimizer steps between two measurements. None measures only before the first and
    after the last step."""

    max_examples: int = Field(default=512, ge=1)
    """Largest number of held-out examples to measure, sampled by the seed."""

    best_metric: BestMetric | None = None
    """Metric that selects the best checkpoint, which is kept in addition to the newest. Each
    measurement that is better than all before it saves one. None keeps no best checkpoint."""

    patience: int | None = Field(default=None, ge=1)
    """Number of measurements in a row without a better `best_metric` that end training. None
    disables early stopping."""

    @model_validator(mode="after")
    def _measured(self) -> "HeldOutConfig":
        if self.best_metric is not None and self.every_steps is None:
            raise ValueError("best_metric needs every_steps, which measures during training")
        if self.patience is not None and self.best_metric is None:
            raise ValueError("patience needs best_metric, the metric that must improve")
        return self


class TrainingLength(Section):
    """Length of training, in epochs or optimizer steps. If both are given, the first reached ends
    the run."""

    epochs: float | None = Field(default=1.0, gt=0)
    """Number of passes over the examples. None needs max_steps. If an epoch of several examples is
    a single optimizer step, the job is refused: lower batch.global_batch_size, or give max_steps
    if you want a single step."""

    max_steps: int | None = Field(default=None, ge=1)
    """Number of optimizer steps. None needs epochs."""

    @model_validator(mode="after")
    def _ends(self) -> "TrainingLength":
        if self.epochs is None and self.max_steps is None:
            raise ValueError("give epochs, max_steps or both; without either the run never ends")
        return self
