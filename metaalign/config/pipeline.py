"""Settings of the pipeline job: every stage in order, each with its own job's settings."""

from typing import Any

from pydantic import Field, model_validator

from metaalign.config.dpo import DPOConfig
from metaalign.config.evaluate import EvaluateConfig
from metaalign.config.export import ExportConfig
from metaalign.config.places import AbsolutePath
from metaalign.config.prepare import PrepareConfig
from metaalign.config.sections import Section, TrackingConfig
from metaalign.config.serve import ServeConfig
from metaalign.config.sft import SFTConfig

STAGES = ("prepare", "sft", "sft_export", "dpo", "export", "evaluate", "serve")
"""The stages, in the order in which they run."""


class PipelineConfig(Section):
    """`python -m ray_jobs.pipeline CONFIG.yaml section.key=value ...`

    Stages take `storage` and `tracking` from here where they do not give their own. A stage that
    is left out does not run.
    """

    storage: AbsolutePath
    """Root of all outputs: an absolute path or a file:// URI that every node sees."""

    name: str = Field(default="pipeline", min_length=1)
    """Name of the pipeline's MLflow run."""

    seed: int = Field(default=0, ge=0)
    """Seed that draws the held-out question which the serve stage asks."""

    tracking: TrackingConfig = TrackingConfig()

    prepare: PrepareConfig | None = None
    sft: SFTConfig | None = None
    sft_export: ExportConfig | None = None
    """Exports the SFT run, which the dpo stage starts from."""

    dpo: DPOConfig | None = None
    export: ExportConfig | None = None
    """Exports the last training run, which evaluate and serve read."""

    evaluate: EvaluateConfig | None = None
    serve: ServeConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _hand_down(cls, settings: Any) -> Any:
        if not isinstance(settings, dict):
            return settings
        handed = {key: settings[key] for key in ("storage", "tracking") if key in settings}
        settings = dict(settings)
        own: dict[str, Any]
        both: dict[str, Any]
        for stage in STAGES:
            if isinstance(settings.get(stage), dict):
                own = handed if stage != "serve" else {"storage": handed.get("storage")}
                both = {**own, **settings[stage]}
                above, below = own.get("tracking"), both.get("tracking")
                if isinstance(above, dict) and isinstance(below, dict):
                    both["tracking"] = {**above, **below}
                settings[stage] = both
        return settings

    @model_validator(mode="after")
    def _some_stage(self) -> "PipelineConfig":
        if all(getattr(self, stage) is None for stage in STAGES):
            raise ValueError(f"give at least one stage of {', '.join(STAGES)}")
        return self
