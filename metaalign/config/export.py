"""Settings of the export job: a training run in, a Hugging Face folder out."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from metaalign.config.places import AbsolutePath
from metaalign.config.sections import FolderName, Section, TrackingConfig


class ExportTrackingConfig(TrackingConfig):
    """Where MLflow keeps the runs, and the name of the model there."""

    registered_model: str | None = None
    """Name under which the exported model is registered. None registers nothing."""

    alias: str = Field(default="newest", pattern=r"^[\w-]+$")
    """Alias that the newest registered version gets. MLflow keeps `latest` and `v1` for itself."""

    @field_validator("alias")
    @classmethod
    def _not_reserved(cls, alias: str) -> str:
        if alias.lower() == "latest" or alias.lower().removeprefix("v").isdigit():
            raise ValueError("is reserved by MLflow; choose another alias")
        return alias

    @model_validator(mode="after")
    def _of_a_registered_model(self) -> "ExportTrackingConfig":
        if self.registered_model is None and self.changed("alias"):
            raise ValueError(
                f"alias {self.alias!r} has no effect without registered_model; give both, or leave "
                "it out"
            )
        return self


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

    tracking: ExportTrackingConfig = ExportTrackingConfig()
