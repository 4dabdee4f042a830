"""Settings of the prepare job, which writes a token store from files and recipes."""

from string import ascii_uppercase
from typing import Literal

from pydantic import Field, field_validator, model_validator

from metaalign.config.columns import ColumnsConfig
from metaalign.config.places import AbsolutePath, Place
from metaalign.config.sections import FolderName, Section, TrackingConfig
from metaalign.config.teacher import (
    AskConfig,
    JudgementConfig,
    NegativesConfig,
    ResponsesConfig,
    TeacherConfig,
)

Format = Literal[
    "auto",
    "metaalign",
    "messages",
    "sharegpt",
    "pairs",
    "hh_rlhf",
    "alpaca",
    "completion",
    "rated",
    "metaaligner",
    "compared",
    "shp",
    "openai",
    "oasst",
    "helpsteer",
    "arena",
    "pandalm",
    "numbered",
    "text",
    "fine_grained",
    "truthfulqa",
    "personas",
    "prompts",
]


_MAPPED_FORMATS = ("auto", "pairs", "hh_rlhf", "messages", "completion", "rated", "prompts")
"""Formats that read the names of `columns`."""

Recipe = Literal["helpful", "consensus", "priority", "warm_up", "equal", "contrastive"]
Wire = Literal["hh_rlhf", "ultrafeedback", "imhi"]


_TIERS = ("system_info", "user_info")


class DatasetConfig(Section):
    """A data set of the Hugging Face library."""

    name: str = Field(min_length=1)
    """Hub name, or absolute path of a folder of data files or of one that `save_to_disk` wrote."""

    config: str | None = None
    """Name of the data set's configuration. None uses the only or the default one."""

    split: str = "train"
    """Name of the split to read."""

    revision: str | None = None
    """Commit, tag or branch on the hub. None uses the newest."""


class CorrectionConfig(Section):
    """Correction samples, which train a corrector to edit one answer into another."""

    wire: Wire = "ultrafeedback"
    """Name of the MetaAligner prompt that samples use."""

    objectives: dict[str, str] = Field(default_factory=dict)
    """Wording of an objective in prompts, by its name, such as "Humor: be cheerful". MetaAligner's
    objectives have default wordings. Any other defaults to its name; `preference` is left out."""

    warm_up_ratio: float = Field(default=0.3, gt=0, le=1)
    """Number of warm_up samples, as a share of the equal samples."""


class SourceConfig(Section):
    """Rows of one format."""

    path: Place | None = None
    """Absolute path, glob, or address in object storage such as s3://bucket/data/*.parquet, of
    JSON, CSV or Parquet files, plain or gzip."""

    dataset: DatasetConfig | None = None
    """A Hugging Face data set, instead of a path."""

    format: Format = "auto"
    """Format of the rows. auto detects it from the first rows."""

    field: str | None = Field(default=None, min_length=1)
    """Key of the list of rows in files that are one JSON object, such as `data` in
    {"version": 1, "data": [...]}. None expects JSON lines or a list."""

    columns: ColumnsConfig | None = None
    """Names of the columns, such as {prompt: question, chosen: answer_a, rejected: answer_b}.
    None uses the format's own names."""

    system_info: str = ""
    """System Info for rows that have none."""

    user_info: str | None = None
    """User Info for rows that have none. For personas, None uses the persona named by the file."""

    order_by: str | None = None
    """Objective that orders judged answers. None uses the overall score, or the only objective. If
    a row has several examples, those without a score for it are left out, unless none has one."""

    assistant_turns: Literal["every", "last"] = "every"
    """Assistant turns of an unlabelled conversation to train on. Each is an example of its own, and
    the examples share the turns before them."""

    responses: ResponsesConfig | None = None
    """Requests answers from a teacher for rows that have none, turn by turn. None leaves such rows
    out."""

    judgement: JudgementConfig | None = None
    """Has a teacher judge the answers of rows with several, before the recipe. None does not."""

    recipe: Recipe | None = None
    """Transforms every example. helpful, consensus and priority (MetaAlign) replace its System Info
    and User Info by meta-prompts. helpful: a pair whose better answer is the safer one appears with
    safety first and, with flipped labels, with helpfulness first. consensus: judged answers appear
    without and with a background of the user. priority: an answer is made to obey a verifiable
    instruction and its opposite, which System Info and User Info give. contrastive, equal and
    warm_up (MetaAligner) make correction samples. contrastive: the worse answer is edited into the
    better one. equal: into an equally good one. warm_up: into itself. None changes nothing."""

    correction: CorrectionConfig = CorrectionConfig()
    """Settings of the recipes warm_up, equal and contrastive."""

    negatives: NegativesConfig | None = None
    """Requests a worse response from a teacher for every example, after the recipe. None does
    not."""

    max_bad_ratio: float | None = Field(default=None, ge=0, le=1)
    """Share of bad rows above which the job fails. None uses the job's max_bad_ratio."""

    @model_validator(mode="after")
    def _one_origin(self) -> "SourceConfig":
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give exactly one of path and dataset")
        if self.dataset is not None and self.field is not None:
            raise ValueError("field: applies only to files of a path, not to a dataset")
        return self

    @model_validator(mode="after")
    def _mappable(self) -> "SourceConfig":
        if self.columns is not None and self.format not in _MAPPED_FORMATS:
            raise ValueError(
                f"format: {self.format} has columns of its own, which `columns` renames; leave "
                f"one out, or give one of {', '.join(_MAPPED_FORMATS)}"
            )
        return self

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "SourceConfig":
        edits = self.recipe in ("warm_up", "equal", "contrastive")
        if not edits and self.changed("correction"):
            raise ValueError(
                f"correction has no effect with recipe {self.recipe!r}; it applies to the recipes "
                "warm_up, equal and contrastive"
            )
        if self.recipe != "warm_up" and self.correction.changed("warm_up_ratio"):
            raise ValueError(
                f"correction.warm_up_ratio has no effect with recipe {self.recipe!r}; it applies "
                "to the recipe warm_up"
            )
        if self.recipe is None or self.responses or self.judgement:
            return self
        # A persona's statements need a user_info if its name is not known.
        tiers = ("system_info",) if self.format in ("auto", "personas") else _TIERS
        if replaced := self.changed(*tiers):
            raise ValueError(
                f"{' and '.join(replaced)} would be replaced by recipe {self.recipe!r} before "
                "anything reads it; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _judgeable(self) -> "SourceConfig":
        most = len(ascii_uppercase)
        if self.judgement and self.responses and self.responses.samples > most:
            raise ValueError(f"responses.samples: a judge takes at most {most} answers")
        return self


class RecipesConfig(Section):
    """Rule-written MetaAlign data with preferences that a program can check."""

    examples: int = Field(default=20_000, ge=100)
    """Number of training examples to write."""

    cases: int = Field(default=400, ge=20)
    """Number of held-out cases to write for each metric of the evaluation."""

    max_preferences: Literal[1, 2] = 2
    """Largest number of preferences that one speaker states at once."""

    held_out_ratio: float = Field(default=0.2, gt=0, lt=1)
    """Share of the (query, preference family) combinations that training never sees."""

    negatives: NegativesConfig | None = None
    """Requests a worse response from a teacher for every example. None does not."""


class TokenizerConfig(Section):
    """The tokenizer: a given one, or one trained on the prepared text."""

    path: str | None = None
    """Hugging Face folder, name under the storage, or hub name. None trains a byte-level BPE."""

    vocabulary_size: int = Field(default=1024, ge=270)
    """Vocabulary size of a trained tokenizer, including control tokens. Has no effect on `path`."""

    @model_validator(mode="after")
    def _of_a_trained_one(self) -> "TokenizerConfig":
        if self.path is not None and self.changed("vocabulary_size"):
            raise ValueError(
                "vocabulary_size has no effect on the tokenizer at path, which has its own size; "
                "leave one of them out"
            )
        return self


class PrepareConfig(Section):
    """`python -m ray_jobs.prepare CONFIG.yaml section.key=value ...`"""

    storage: AbsolutePath
    """Root of all outputs: an absolute path or a file:// URI that all nodes share."""

    output: FolderName = "store"
    """Name of the token store under the storage."""

    sources: tuple[SourceConfig, ...] = ()
    """Files and data sets to read."""

    recipes: RecipesConfig | None = None
    """Rule-written data, in addition to the sources or instead of them. None writes none."""

    teachers: dict[str, TeacherConfig] = Field(default_factory=dict)
    """Upstream models, by the name under which sources refer to them. Their answers are cached by
    request in the folder `answers` under the storage, so that no later job pays for them again."""

    tokenizer: TokenizerConfig = TokenizerConfig()

    held_out_ratio: float = Field(default=0.1, ge=0, lt=1)
    """Share of each source's conversations to hold out of training, chosen by hash."""

    held_out_families: tuple[str, ...] = ()
    """Preference families that the recipes use only in the held-out split, each with its opposite,
    such as `greeting` or `punctuation:no_comma`."""

    share: tuple[float, float] = (0.0, 1.0)
    """Range of the training conversations, and of the rule-written queries, that the store takes,
    by hash. With the same seed, [0, 0.5] for a first stage and [0.5, 1] for a second one have none
    in common. Held-out conversations are in both."""

    near_duplicates: float | None = Field(default=None, gt=0, le=1)
    """Similarity of the user turns at which an example of the sources counts as a near-duplicate of
    a held-out one and is left out of training; 0.8 is usual. None keeps near-duplicates.
    Rule-written data is not checked: its split is by query and preference."""

    context: int | None = Field(default=None, ge=1)
    """Largest context length, in tokens, of later training. Examples whose System Info, User Info
    and last query alone are longer are reported by tier and length, and training leaves them out.
    None reports none."""

    oppose_personas: bool = True
    """Also write every statement of a persona under the opposite persona, with flipped labels."""

    max_bad_ratio: float = Field(default=0.05, ge=0, le=1)
    """Share of bad source rows, or of examples without an answer from a teacher, above which the
    job fails."""

    max_lost_text_ratio: float = Field(default=0.01, ge=0, le=1)
    """Share of a source's checked texts that the tokenizer changes when it encodes and decodes
    them, above which the job fails. The first 100 rows of each file are checked, then every
    50th."""

    seed: int = Field(default=0, ge=0)
    """Seed of the recipes and splits."""

    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _something_to_read(self) -> "PrepareConfig":
        if not self.sources and self.recipes is None:
            raise ValueError("give sources, recipes or both; there is nothing to prepare")
        return self

    @field_validator("share")
    @classmethod
    def _a_range(cls, share: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= share[0] < share[1] <= 1:
            raise ValueError("must be two shares, the first below the second, such as [0, 0.5]")
        return share

    @model_validator(mode="after")
    def _known_teachers(self) -> "PrepareConfig":
        unknown = sorted({ask.teacher for ask in self.asks()} - set(self.teachers))
        if unknown:
            known = ", ".join(self.teachers) or "none"
            raise ValueError(f"teachers: {', '.join(unknown)} is not among them; known: {known}")
        return self

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "PrepareConfig":
        of_sources = self.changed("near_duplicates", "held_out_ratio") if not self.sources else []
        problems = [f"{name} has no effect without sources" for name in of_sources]
        makes_preferences = any(source.recipe == "priority" for source in self.sources)
        if self.held_out_families and self.recipes is None and not makes_preferences:
            problems.append(
                "held_out_families has no effect without recipes or a source with recipe 'priority'"
            )
        formats = {source.format for source in self.sources}
        if not self.oppose_personas and not formats & {"auto", "personas"}:
            problems.append("oppose_personas has no effect without a source of personas")
        unused = sorted(set(self.teachers) - {ask.teacher for ask in self.asks()})
        if unused:
            problems.append(f"teachers: no source or recipe uses {', '.join(unused)}")
        if problems:
            raise ValueError(f"{'; '.join(problems)}; leave out what has no effect")
        return self

    def asks(self) -> list[AskConfig]:
        """The settings of all requests to teachers."""
        asks = [ask for each in self.sources for ask in (each.responses, each.judgement)]
        asks += [each.negatives for each in (*self.sources, self.recipes) if each is not None]
        return [ask for ask in asks if ask is not None]
