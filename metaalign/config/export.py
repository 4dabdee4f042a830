"""Settings of the export job, which turns a training run into a Hugging Face folder."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from metaalign.config.places import AbsolutePath
from metaalign.config.sections import FolderName, Section, TrackingConfig


class ExportTrackingConfig(TrackingConfig):
    """Where MLflow stores runs, and under which name it registers the model."""

    registered_model: str | None = None
    """Name under which the exported model is registered. None registers nothing."""

    alias: str = Field(default="newest", pattern=r"^[\w-]+$")
    """Alias of the newest registered version. MLflow reserves `latest` and names such as `v1`."""

    @field_validator("alias")
    @classmethod
    def _check_alias(cls, alias: str) -> str:
        if alias.lower() == "latest" or alias.lower().removeprefix("v").isdigit():
            raise ValueError("is reserved by MLflow; choose another alias")
        return alias

    @model_validator(mode="after")
    def _check_registered_model(self) -> "ExportTrackingConfig":
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
    """The sft or dpo run to export: the name of its folder under the storage."""

    checkpoint: Literal["newest", "best"] | Annotated[int, Field(ge=1)] | None = None
    """The checkpoint to export: the newest, the best by the run's held_out.best_metric, or the one
    after this many steps. None takes the best if the run kept a complete one, else the newest."""

    output: FolderName = "model"
    """Name of the Hugging Face folder under the storage."""

    tracking: ExportTrackingConfig = ExportTrackingConfig()
