"""Settings of the evaluate job: Hugging Face folders in, rates, tables and plots out."""

from pydantic import Field, field_validator

from metaalign.config.places import AbsolutePath
from metaalign.config.sections import FolderName, Section, TrackingConfig


class GenerationConfig(Section):
    """How answers are decoded."""

    max_tokens: int = Field(default=64, ge=1)
    """Most tokens of one answer."""

    batch_size: int = Field(default=64, ge=1)
    """Prompts decoded together."""


class EvaluateConfig(Section):
    """`python -m ray_jobs.evaluate CONFIG.yaml section.key=value ...`"""

    storage: AbsolutePath
    """Root of all outputs: an absolute path or a file:// URI that every node sees."""

    store: str = "store"
    """Token store whose held-out cases are asked: its name under the storage, or an absolute
    path."""

    models: dict[str, str] = Field(
        default={"before": "initial", "sft": "sft_model", "after": "model"}, min_length=1
    )
    """Name in the report: Hugging Face folder, by name under the storage or absolute path."""

    output: FolderName = "evaluation"
    """Name of the report's folder under the storage."""

    num_workers: int = Field(default=1, ge=1)
    """Processes that generate side by side."""

    generation: GenerationConfig = GenerationConfig()
    tracking: TrackingConfig = TrackingConfig()

    @field_validator("models")
    @classmethod
    def _names(cls, models: dict[str, str]) -> dict[str, str]:
        if "count" in models:
            raise ValueError("'count' is the report's own key; give that model another name")
        return models
