"""Settings of the dpo job: preference training. The reference is the initial model."""

from pydantic import Field, model_validator

from metaalign.config.batch import BatchConfig
from metaalign.config.checkpoint import CheckpointConfig, check_resizes
from metaalign.config.places import AbsolutePath
from metaalign.config.preference_losses import PreferenceLossConfig
from metaalign.config.sections import (
    FolderName,
    HeldOutConfig,
    ModelConfig,
    OptimizerConfig,
    Section,
    TrackingConfig,
    TrainingLength,
    WorkersConfig,
    ZeroConfig,
)


class DPOOptimizerConfig(OptimizerConfig):
    """The optimizer and its learning-rate schedule."""

    learning_rate: float = Field(default=5e-7, gt=0)
    """Peak learning rate, reached after warmup."""


class DPOConfig(Section):
    """`python -m ray_jobs.dpo CONFIG.yaml section.key=value ...`"""

    storage: AbsolutePath
    """Root of all outputs: an absolute path or a file:// URI that all nodes share."""

    output: FolderName = "dpo"
    """Name of the run's folder under the storage."""

    store: str = "store"
    """Token store: its name under the storage, or an absolute path."""

    model: ModelConfig
    loss: PreferenceLossConfig = PreferenceLossConfig()
    length: TrainingLength = TrainingLength()
    batch: BatchConfig = BatchConfig()
    optimizer: DPOOptimizerConfig = DPOOptimizerConfig()
    zero: ZeroConfig = ZeroConfig()
    workers: WorkersConfig = WorkersConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    held_out: HeldOutConfig = HeldOutConfig()

    seed: int = Field(default=0, ge=0)
    """Seed of the order of the examples."""

    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _rewards_of_pairs(self) -> "DPOConfig":
        metric = self.held_out.best_metric
        if self.loss.kind.data == "single" and metric not in (None, "loss"):
            raise ValueError(
                f"held_out.best_metric {metric!r} compares the responses of a pair, and loss.name "
                f"{self.loss.name} uses no pairs; it has only 'loss'"
            )
        return self

    @model_validator(mode="after")
    def _can_resize(self) -> "DPOConfig":
        check_resizes(self.workers, self.checkpoint)
        return self
