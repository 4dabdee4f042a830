"""Settings of the evaluate job, which reads Hugging Face folders and writes a report."""

from pydantic import Field, field_validator

from metaalign.config.places import AbsolutePath
from metaalign.config.sections import FolderName, Section, TrackingConfig


class GenerationConfig(Section):
    """How answers are decoded."""

    max_tokens: int = Field(default=64, ge=1)
    """Most tokens of one answer."""

    batch_size: int = Field(default=64, ge=1)
    """Prompts in one decoding batch."""


class EvaluateConfig(Section):
    """`python -m ray_jobs.evaluate CONFIG.yaml section.key=value ...`"""

    storage: AbsolutePath
    """Root of all outputs: an absolute path or a file:// URI that every node sees."""

    store: str = "store"
    """Token store whose held-out examples and cases are evaluated: a name under the storage or an
    absolute path."""

    models: dict[str, str] = Field(
        default={"before": "initial", "sft": "sft_model", "after": "model"}, min_length=1
    )
    """Models to evaluate: for each name in the report a Hugging Face folder, given as a name under
    the storage or an absolute path."""

    reference: str | None = None
    """Reference model of `pairs_in_order` and `reward_margin`: a Hugging Face folder, given as a
    name under the storage or an absolute path. None chooses it: the model from which the last dpo
    model of `models` started; without a dpo model, the last sft model, or its starting model if
    that sft model is the last of `models`; without either, there is no reference."""

    held_out_examples: int | None = Field(default=1000, ge=1)
    """Most held-out examples whose log-probabilities are measured. None takes all."""

    seed: int = Field(default=0, ge=0)
    """Seed for drawing held-out examples and for the bootstrap intervals."""

    output: FolderName = "evaluation"
    """Name of the report's folder under the storage."""

    num_workers: int = Field(default=1, ge=1)
    """Processes that evaluate in parallel, each on its own GPU if the cluster has GPUs."""

    generation: GenerationConfig = GenerationConfig()
    tracking: TrackingConfig = TrackingConfig()

    @field_validator("models")
    @classmethod
    def _check_names(cls, models: dict[str, str]) -> dict[str, str]:
        if "count" in models:
            raise ValueError("'count' is the report's own key; give that model another name")
        return models
