"""Settings of the evaluate job: Hugging Face folders in, a report with tables and plots out."""

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
    """Token store whose held-out examples and cases are evaluated: its name under the storage, or
    an absolute path."""

    models: dict[str, str] = Field(
        default={"before": "initial", "sft": "sft_model", "after": "model"}, min_length=1
    )
    """Name in the report: Hugging Face folder, by name under the storage or absolute path."""

    reference: str | None = None
    """The model that `pairs_in_order` and `reward_margin` compare with: a Hugging Face folder, by
    name under the storage or absolute path. None is the model that the last dpo model of `models`
    started from; without one, the last sft model, or what that started from where it is the last of
    `models`; without one, there is no reference."""

    held_out_examples: int | None = Field(default=1000, ge=1)
    """Most held-out examples whose log-probabilities are measured. None takes all."""

    seed: int = Field(default=0, ge=0)
    """Seed of the draw of held-out examples and of the intervals."""

    output: FolderName = "evaluation"
    """Name of the report's folder under the storage."""

    num_workers: int = Field(default=1, ge=1)
    """Processes that evaluate side by side, each on a GPU where the cluster has any."""

    generation: GenerationConfig = GenerationConfig()
    tracking: TrackingConfig = TrackingConfig()

    @field_validator("models")
    @classmethod
    def _names(cls, models: dict[str, str]) -> dict[str, str]:
        if "count" in models:
            raise ValueError("'count' is the report's own key; give that model another name")
        return models
