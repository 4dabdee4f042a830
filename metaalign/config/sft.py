"""Settings of the sft job: supervised fine-tuning on the best response."""

from pydantic import Field, model_validator

from metaalign.config.batch import BatchConfig
from metaalign.config.checkpoint import CheckpointConfig, check_resizes
from metaalign.config.places import AbsolutePath
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


class SFTConfig(Section):
    """`python -m ray_jobs.sft CONFIG.yaml section.key=value ...`"""

    storage: AbsolutePath
    """Root of all outputs: an absolute path or a file:// URI that all nodes share."""

    output: FolderName = "sft"
    """Name of the run's folder under the storage."""

    store: str = "store"
    """Token store: its name under the storage, or an absolute path."""

    model: ModelConfig
    length: TrainingLength = TrainingLength()
    batch: BatchConfig = BatchConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    zero: ZeroConfig = ZeroConfig()
    workers: WorkersConfig = WorkersConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    held_out: HeldOutConfig = HeldOutConfig()

    seed: int = Field(default=0, ge=0)
    """Seed of the order of the examples."""

    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _no_rewards(self) -> "SFTConfig":
        if self.held_out.best_metric not in (None, "loss"):
            raise ValueError(
                f"held_out.best_metric {self.held_out.best_metric!r} needs preference training; "
                "sft has only 'loss'"
            )
        return self

    @model_validator(mode="after")
    def _can_resize(self) -> "SFTConfig":
        check_resizes(self.workers, self.checkpoint)
        return self
