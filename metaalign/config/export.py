"""Settings of the export job: a training run in, a Hugging Face folder out."""

from typing import Annotated, Literal

from pydantic import Field

from metaalign.config.places import AbsolutePath
from metaalign.config.sections import FolderName, Section, TrackingConfig


class ExportConfig(Section):
    """`python -m ray_jobs.export CONFIG.yaml section.key=value ...`"""

    storage: AbsolutePath
    """Root of all outputs: an absolute path or a file:// URI that every node sees."""

    run: str = "dpo"
    """The sft or dpo run that is exported: its folder's name under the storage."""

    checkpoint: Literal["newest", "best"] | Annotated[int, Field(ge=1)] | None = None
    """Which of its checkpoints: the newest, the best by its held_out.best_metric, or the one
    after so many steps. None takes the best where the run kept one that is whole, else the
    newest."""

    output: FolderName = "model"
    """Name of the Hugging Face folder under the storage."""

    tracking: TrackingConfig = TrackingConfig()
