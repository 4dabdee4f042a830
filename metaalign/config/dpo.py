"""Settings of the dpo job: preference training against the model's own start."""

from pydantic import Field

from metaalign.config.sections import (
    AbsolutePath,
    BatchConfig,
    CheckpointConfig,
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


class PreferenceLossConfig(Section):
    """The preference loss."""

    beta: float = Field(default=0.1, gt=0)
    """Strength of the pull towards the reference. Larger stays closer."""

    sft_weight: float = Field(default=0.0, ge=0)
    """Weight of the SFT loss on the chosen response, per target token, beside the pair loss."""


class DPOConfig(Section):
    """`python -m ray_jobs.dpo CONFIG.yaml section.key=value ...`"""

    storage: AbsolutePath
    """Root of all outputs: an absolute path or a file:// URI that every node sees."""

    output: FolderName = "dpo"
    """Name of the run's folder under the storage."""

    store: str = "store"
    """Token store: its name under the storage, or an absolute path."""

    model: ModelConfig
    loss: PreferenceLossConfig = PreferenceLossConfig()
    length: TrainingLength = TrainingLength()
    batch: BatchConfig = BatchConfig()
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=5e-7)
    zero: ZeroConfig = ZeroConfig()
    workers: WorkersConfig = WorkersConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    held_out: HeldOutConfig = HeldOutConfig()

    seed: int = Field(default=0, ge=0)
    """Seed of the order in which examples are visited."""

    tracking: TrackingConfig = TrackingConfig()
