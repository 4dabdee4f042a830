"""Settings of the pipeline job: the stages in order, each with the settings of its job."""

from typing import Any

from pydantic import Field, model_validator

from metaalign.config.dpo import DPOConfig
from metaalign.config.evaluate import EvaluateConfig
from metaalign.config.export import ExportConfig, ExportTrackingConfig
from metaalign.config.places import AbsolutePath
from metaalign.config.prepare import PrepareConfig
from metaalign.config.sections import Section, TrackingConfig
from metaalign.config.serve import ServeConfig
from metaalign.config.sft import SFTConfig

STAGES = ("prepare", "sft", "sft_export", "dpo", "export", "evaluate", "serve")
"""The stages, in the order in which they run."""

_EXPORTS = ("sft_export", "export")


class PipelineConfig(Section):
    """`python -m ray_jobs.pipeline CONFIG.yaml section.key=value ...`

    A stage without `storage` or `tracking` inherits the pipeline's. A stage that is left out does
    not run.
    """

    storage: AbsolutePath
    """Root of all outputs: an absolute path or a file:// URI that all nodes share."""

    name: str = Field(default="pipeline", min_length=1)
    """Name of the pipeline's MLflow run."""

    seed: int = Field(default=0, ge=0)
    """Seed that selects the held-out query for the serve stage."""

    tracking: ExportTrackingConfig = ExportTrackingConfig()

    prepare: PrepareConfig | None = None
    sft: SFTConfig | None = None
    sft_export: ExportConfig | None = None
    """Exports the SFT run, from which the dpo stage starts."""

    dpo: DPOConfig | None = None
    export: ExportConfig | None = None
    """Exports the last training run, which evaluate and serve read."""

    evaluate: EvaluateConfig | None = None
    serve: ServeConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _inherit_all(cls, settings: Any) -> Any:
        if not isinstance(settings, dict):
            return settings
        given = [stage for stage in STAGES if isinstance(settings.get(stage), dict)]
        return {**settings, **{stage: _inherit(settings, stage) for stage in given}}

    @model_validator(mode="after")
    def _some_stage(self) -> "PipelineConfig":
        if all(getattr(self, stage) is None for stage in STAGES):
            raise ValueError(f"give at least one stage of {', '.join(STAGES)}")
        return self

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "PipelineConfig":
        if self.serve is None and self.changed("seed"):
            raise ValueError(
                "seed has no effect without the stage serve, whose query it selects; each stage "
                "has a seed of its own"
            )
        registered = self.tracking.registered_model
        if registered is not None and self.export is None and self.sft_export is None:
            raise ValueError(
                f"tracking.registered_model {registered!r} has no effect without a stage that "
                "exports; add export or sft_export, or leave it out"
            )
        return self


def _inherit(settings: dict[str, Any], stage: str) -> dict[str, Any]:
    """A stage's own settings, with the pipeline's `storage` and `tracking` for those it omits."""
    own = settings[stage]
    inherited = {"storage": settings["storage"]} if "storage" in settings else {}
    tracking = settings.get("tracking")
    if stage == "serve" or "tracking" not in settings:
        return {**inherited, **own}
    if isinstance(tracking, dict) and isinstance(own.get("tracking", {}), dict):
        known = ExportTrackingConfig if stage in _EXPORTS else TrackingConfig
        unknown = set(ExportTrackingConfig.model_fields) - set(known.model_fields)
        above = {key: value for key, value in tracking.items() if key not in unknown}
        tracking = {**above, **own.get("tracking", {})}
        return {**inherited, **own, "tracking": tracking}
    return {**inherited, "tracking": tracking, **own}
