"""The table of preference losses, one row a loss, and the settings that follow from it.

Everything that differs from loss to loss stands in its row: the training code, the checks of the
settings, `--help` and the table of the documentation follow. The functions themselves are in
`train/losses/formulas.py`; this file names them and knows no tensor.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from metaalign.config.sections import Section
from metaalign.errors import did_you_mean

SHARED_SETTINGS = ("beta", "sft_weight")
"""Settings that every loss reads."""


@dataclass(frozen=True, kw_only=True)
class PreferenceLoss:
    """One row of the table.

    Attributes:
        name: The value of the setting `loss.name`.
        function: Its name in `train/losses/formulas.py`. It takes `beta`, the loss's own settings
            by their names, `margin` where the loss knows one, and what its kind of data gives.
        formula: As the documentation shows it, in the symbols that are explained there.
        paper: Its number on arXiv.
        where: Where in the paper, if it can be named.
        data: What it learns from: every ordered pair of an example, the whole ranking of its
            responses, or single responses that are marked desirable or not.
        compares: The log-ratio of policy to reference of a whole response, its mean over the
            response's tokens, or the policy's mean log-prob, which needs no reference.
        has_margin: Whether it asks for the margin that an example may carry.
        settings: Its own settings and their defaults.
        defaults: Its defaults of shared settings, where they differ from the usual.
    """

    name: str
    function: str
    formula: str
    paper: str
    where: str = ""
    data: Literal["pairs", "ranking", "single"] = "pairs"
    compares: Literal["log_ratio", "mean_log_ratio", "mean_logprob"] = "log_ratio"
    has_margin: bool = False
    settings: Mapping[str, float] = field(default_factory=dict)
    defaults: Mapping[str, float] = field(default_factory=dict)

    @property
    def has_reference(self) -> bool:
        """Whether a pass of the reference over the data comes before training."""
        return self.compares != "mean_logprob"

    @property
    def has_references(self) -> bool:
        """Whether it can pull towards several references at once."""
        return self.data == "pairs" and self.has_reference

    @property
    def is_mean(self) -> bool:
        """Whether it compares means over a response's tokens."""
        return self.compares != "log_ratio"


_TABLE = (
    PreferenceLoss(
        name="sigmoid",
        function="dpo_loss",
        formula="-log σ(β(r_w - r_l) - m): DPO",
        paper="2305.18290",
        where="equation 7",
        has_margin=True,
    ),
    PreferenceLoss(
        name="ipo",
        function="ipo_loss",
        formula="(r̄_w - r̄_l - 1/(2β))²",
        paper="2310.12036",
        where="equation 17",
        compares="mean_log_ratio",
    ),
    PreferenceLoss(
        name="hinge",
        function="hinge_loss",
        formula="max(0, 1 + m - β(r_w - r_l))",
        paper="2309.06657",
        where="hinge-norm",
        has_margin=True,
    ),
    PreferenceLoss(
        name="robust",
        function="robust_loss",
        formula="((1 - ε) DPO of the pair - ε DPO of its opposite) / (1 - 2ε); ε `label_smoothing`",
        paper="2403.00409",
        has_margin=True,
        settings={"label_smoothing": 0.1},
    ),
    PreferenceLoss(
        name="simpo",
        function="simpo_loss",
        formula="-log σ(β(p̄_w - p̄_l) - γ - m); γ `target_margin`",
        paper="2405.14734",
        where="equation 6",
        compares="mean_logprob",
        has_margin=True,
        settings={"target_margin": 0.5},
        defaults={"beta": 2.0},
    ),
    PreferenceLoss(
        name="orpo",
        function="orpo_loss",
        formula="SFT - β log σ(log-odds p̄_w - log-odds p̄_l)",
        paper="2403.07691",
        where="equations 6 and 7",
        compares="mean_logprob",
        defaults={"sft_weight": 1.0},
    ),
    PreferenceLoss(
        name="apo_zero",
        function="apo_zero_loss",
        formula="1 - σ(βr_w) + σ(βr_l)",
        paper="2408.06266",
        where="equation 7",
    ),
    PreferenceLoss(
        name="apo_down",
        function="apo_down_loss",
        formula="σ(βr_w) + 1 - σ(β(r_w - r_l))",
        paper="2408.06266",
        where="equation 8",
    ),
    PreferenceLoss(
        name="sppo_hard",
        function="sppo_hard_loss",
        formula="(r_w - 1/(2β))² + (r_l + 1/(2β))²",
        paper="2405.00675",
        where="equation 4.7",
        defaults={"beta": 0.001},
    ),
    PreferenceLoss(
        name="plackett_luce",
        function="plackett_luce_loss",
        formula="place by place: -log of β r's softmax over a response and all worse ones",
        paper="2305.18290",
        where="appendix A.3",
        data="ranking",
    ),
    PreferenceLoss(
        name="kto",
        function="kto_loss",
        formula="λ(1 - σ(±β(r - z))): of a desirable response with +, λ `desirable_weight`; of an "
        "undesirable one with -, λ `undesirable_weight`; z is the step's mean r of responses to "
        "other prompts, at least 0",
        paper="2402.01306",
        where="section 4",
        data="single",
        settings={"desirable_weight": 1.0, "undesirable_weight": 1.0},
    ),
)

PREFERENCE_LOSSES: Mapping[str, PreferenceLoss] = {row.name: row for row in _TABLE}
"""The table, by name."""

OWN_SETTINGS = tuple(dict.fromkeys(setting for row in _TABLE for setting in row.settings))
"""Settings that some losses read and the others refuse."""


def names_with_margin() -> list[str]:
    """The losses that ask for the margin that an example may carry."""
    return [row.name for row in _TABLE if row.has_margin]


def _readers(setting: str) -> list[str]:
    if setting == "references":
        return [row.name for row in _TABLE if row.has_references]
    return [row.name for row in _TABLE if setting in row.settings]


def _about(setting: str, meaning: str) -> str:
    """The setting's line in `--help`: its meaning, the losses that read it and their defaults."""
    given = [(row.name, {**row.settings, **row.defaults}.get(setting)) for row in _TABLE]
    told = ", ".join(f"{name} {value:g}" for name, value in given if value is not None)
    if setting in SHARED_SETTINGS:
        return f"{meaning} Other defaults: {told}."
    return f"{meaning} Read by {', '.join(_readers(setting))} alone. Default: {told}."


class PreferenceLossConfig(Section):
    """The preference loss. A setting that the chosen loss would not read is refused."""

    name: str = Field(
        default="sigmoid",
        json_schema_extra={"enum": [*PREFERENCE_LOSSES]},
        description=f"Which loss: {', '.join(PREFERENCE_LOSSES)}. sigmoid is DPO; the "
        "documentation lists them with their formulas and papers.",
    )
    beta: float = Field(
        default=0.1,
        gt=0,
        description=_about(
            "beta",
            "Strength of the pull towards the reference: a larger one stays closer. For simpo the "
            "scale of the reward, for orpo the weight of the odds ratio, for sppo_hard 1 / eta.",
        ),
    )
    sft_weight: float = Field(
        default=0.0,
        ge=0,
        description=_about(
            "sft_weight",
            "Weight of the SFT loss on the best response, per target token, beside the preference "
            "loss; under kto on the desirable ones.",
        ),
    )
    label_smoothing: float | None = Field(
        default=None,
        ge=0,
        lt=0.5,
        description=_about("label_smoothing", "Share of the labels that are taken to be flipped."),
    )
    target_margin: float | None = Field(
        default=None,
        ge=0,
        description=_about("target_margin", "Gamma, the reward margin that a pair should reach."),
    )
    desirable_weight: float | None = Field(
        default=None,
        ge=0,
        description=_about("desirable_weight", "Weight of the desirable responses."),
    )
    undesirable_weight: float | None = Field(
        default=None,
        ge=0,
        description=_about("undesirable_weight", "Weight of the undesirable responses."),
    )
    references: tuple[str, ...] = ()
    """Further references beside the start, which a pair loss then pulls towards together (MRPO):
    Hugging Face folders, names under the storage, or hub names."""

    reference_clip: float | None = Field(default=None, gt=0, lt=1)
    """With references alone: their log-probs are clipped to within 1 - this and 1 + this times the
    start's. None is 0.1 there."""

    @property
    def kind(self) -> PreferenceLoss:
        """The loss's row of the table."""
        return PREFERENCE_LOSSES[self.name]

    @property
    def own_settings(self) -> dict[str, float]:
        """What the loss reads beside the settings that every loss reads."""
        return {setting: getattr(self, setting) for setting in self.kind.settings}

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in PREFERENCE_LOSSES:
            *names, last = (repr(name) for name in PREFERENCE_LOSSES)
            hint = did_you_mean(name, [*PREFERENCE_LOSSES])
            raise ValueError(f"should be {', '.join(names)} or {last}{hint}")
        return name

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        loss = PREFERENCE_LOSSES.get(str(given.get("name")))
        defaults = {**loss.settings, **loss.defaults} if loss is not None else {}
        if given.get("references"):
            defaults["reference_clip"] = 0.1
        missing = [key for key in defaults if given.get(key) is None]
        return {**given, **{key: defaults[key] for key in missing}}

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "PreferenceLossConfig":
        problems = [
            f"{setting} is read by {', '.join(_readers(setting))} alone, and name is {self.name!r}"
            for setting in (*OWN_SETTINGS, "references")
            if self.name not in _readers(setting) and getattr(self, setting) not in (None, ())
        ]
        if self.reference_clip is not None and not self.references:
            problems.append("reference_clip is read with references alone")
        if problems:
            raise ValueError("; ".join([*problems, "leave out what the loss would not read"]))
        return self
