"""Settings of the dpo job: preference training against the model's own start."""

from typing import Any, Literal

from pydantic import Field, model_validator

from metaalign.config.checkpoint import CheckpointConfig, check_resizes
from metaalign.config.places import AbsolutePath
from metaalign.config.sections import (
    BatchConfig,
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

LossName = Literal[
    "sigmoid",
    "ipo",
    "hinge",
    "robust",
    "simpo",
    "orpo",
    "apo_zero",
    "apo_down",
    "sppo_hard",
    "plackett_luce",
    "kto",
]

_REFERENCE_FREE = ("simpo", "orpo")
WITH_MARGIN = ("sigmoid", "hinge", "robust", "simpo")
"""Losses that ask for the margin that an example may carry."""

_READ_BY = {
    "label_smoothing": ("robust",),
    "target_margin": ("simpo",),
    "desirable_weight": ("kto",),
    "undesirable_weight": ("kto",),
    "references": ("sigmoid", "ipo", "hinge", "robust", "apo_zero", "apo_down", "sppo_hard"),
}
"""Settings that only some losses read."""

_DEFAULTS: dict[str, dict[str, float]] = {
    "robust": {"label_smoothing": 0.1},
    "simpo": {"beta": 2.0, "target_margin": 0.5},
    "orpo": {"sft_weight": 1.0},
    "sppo_hard": {"beta": 0.001},
    "kto": {"desirable_weight": 1.0, "undesirable_weight": 1.0},
}
"""What a loss takes where a setting is not given, if that differs from the field's default."""


class PreferenceLossConfig(Section):
    """The preference loss. A setting that the chosen loss would not read is refused."""

    name: LossName = "sigmoid"
    """Which loss; sigmoid is DPO. README lists them with their formulas and papers."""

    beta: float = Field(default=0.1, gt=0)
    """Strength of the pull towards the reference: larger stays closer. For simpo the scale of the
    reward (2 where not given), for orpo the weight of the odds ratio, for sppo_hard 1 / eta (0.001
    where not given)."""

    sft_weight: float = Field(default=0.0, ge=0)
    """Weight of the SFT loss on the best response, per target token, beside the preference loss;
    under kto on the desirable ones. orpo is defined with it: 1 where not given."""

    label_smoothing: float | None = Field(default=None, ge=0, lt=0.5)
    """robust alone: share of the labels that are taken to be flipped. None is 0.1 there."""

    target_margin: float | None = Field(default=None, ge=0)
    """simpo alone: gamma, the reward margin that a pair should reach. None is 0.5 there."""

    desirable_weight: float | None = Field(default=None, ge=0)
    """kto alone: weight of the desirable responses. None is 1 there."""

    undesirable_weight: float | None = Field(default=None, ge=0)
    """kto alone: weight of the undesirable responses. None is 1 there."""

    references: tuple[str, ...] = ()
    """Further references beside the start, which a pair loss then pulls towards together (MRPO):
    Hugging Face folders, names under the storage, or hub names."""

    reference_clip: float | None = Field(default=None, gt=0, lt=1)
    """With references alone: their log-probs are clipped to within 1 - this and 1 + this times the
    start's. None is 0.1 there."""

    @property
    def reference_free(self) -> bool:
        """Whether the loss knows no reference, so that no pass over the data comes before it."""
        return self.name in _REFERENCE_FREE

    @property
    def takes_margin(self) -> bool:
        """Whether the loss asks for the margin that an example may carry."""
        return self.name in WITH_MARGIN

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        defaults = dict(_DEFAULTS.get(str(given.get("name")), {}))
        if given.get("references"):
            defaults["reference_clip"] = 0.1
        missing = [key for key in defaults if given.get(key) is None]
        return {**given, **{key: defaults[key] for key in missing}}

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "PreferenceLossConfig":
        problems = [
            f"{setting} is read by {', '.join(losses)} alone, and name is {self.name!r}"
            for setting, losses in _READ_BY.items()
            if self.name not in losses and getattr(self, setting) not in (None, ())
        ]
        if self.reference_clip is not None and not self.references:
            problems.append("reference_clip is read with references alone")
        if problems:
            raise ValueError("; ".join([*problems, "leave out what the loss would not read"]))
        return self


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

    @model_validator(mode="after")
    def _rewards_of_pairs(self) -> "DPOConfig":
        metric = self.held_out.best_metric
        if self.loss.name == "kto" and metric not in (None, "loss"):
            raise ValueError(
                f"held_out.best_metric {metric!r} compares the responses of a pair, and loss.name "
                "kto knows no pairs; it has 'loss' alone"
            )
        return self

    @model_validator(mode="after")
    def _can_resize(self) -> "DPOConfig":
        check_resizes(self.workers, self.checkpoint)
        return self
