"""Settings of the export job: a training run in, a Hugging Face folder out."""

from metaalign.config.sections import AbsolutePath, FolderName, Section, TrackingConfig


class ExportConfig(Section):
    """`python -m ray_jobs.export CONFIG.yaml section.key=value ...`"""

    storage: AbsolutePath
    """Root of all outputs: an absolute path or a file:// URI that every node sees."""

    run: str = "dpo"
    """The sft or dpo run whose newest checkpoint is exported: its folder's name under the
    storage."""

    output: FolderName = "model"
    """Name of the Hugging Face folder under the storage."""

    tracking: TrackingConfig = TrackingConfig()
