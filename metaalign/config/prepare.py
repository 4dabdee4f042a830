"""Settings of the prepare job: files and recipes in, token store out."""

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
    """Hub name, or an absolute path: a folder of data files, or what `save_to_disk` wrote."""

    config: str | None = None
    """Which of its configurations. None takes the only or the default one."""

    split: str = "train"
    """Which of its splits."""

    revision: str | None = None
    """Commit, tag or branch on the hub. None takes the newest."""


class CorrectionConfig(Section):
    """Samples of an edit, for a corrector."""

    wire: Wire = "ultrafeedback"
    """Which of MetaAligner's prompts."""

    objectives: dict[str, str] = Field(default_factory=dict)
    """Objective of the scores -> how prompts say it, such as "Humor: be cheerful". Those of
    MetaAligner are known by their names; another is said by its name, and `preference` is left
    out."""

    warm_up_ratio: float = Field(default=0.3, gt=0, le=1)
    """Share of the equal samples that the set warm_up holds."""


class SourceConfig(Section):
    """Rows of one shape."""

    path: Place | None = None
    """Absolute path, glob, or address in object storage such as s3://bucket/data/*.parquet, of
    JSON, CSV or Parquet files, plain or gzip."""

    dataset: DatasetConfig | None = None
    """A Hugging Face data set, in place of a path."""

    format: Format = "auto"
    """Shape of the rows. auto tells it from the first ones."""

    field: str | None = Field(default=None, min_length=1)
    """Key of the list of rows in files that are one JSON object, such as `data` of
    {"version": 1, "data": [...]}. None expects JSON lines, or a list."""

    columns: ColumnsConfig | None = None
    """Which columns hold what, such as {prompt: question, chosen: answer_a, rejected: answer_b}.
    None reads the names that the known formats have."""

    system_info: str = ""
    """System Info for rows that carry none."""

    user_info: str | None = None
    """User Info for rows that carry none. For personas: None takes the persona's own, from its
    file's name."""

    order_by: str | None = None
    """Objective that orders judged answers. None takes the overall score, or the only objective.
    Examples of a row that nobody judged by it are left out where others of the row were."""

    assistant_turns: Literal["every", "last"] = "every"
    """Turns of an unlabelled conversation that are trained; each is an example of its own, which
    shares what was said before it."""

    responses: ResponsesConfig | None = None
    """Ask a teacher for answers to rows that have none, turn by turn. None leaves them out."""

    judgement: JudgementConfig | None = None
    """Ask a teacher to judge the answers of rows that have several, before the recipe."""

    recipe: Recipe | None = None
    """What to make of every example. MetaAlign's put it under meta-prompts, in place of its own
    System Info and User Info. helpful: a pair whose better answer is the safer one stands under
    safety first and, flipped, under helpfulness first. consensus: judged answers stand without and
    with a background of the user's. priority: an answer is made to obey a verifiable instruction
    and its opposite, which System Info and User Info ask for. MetaAligner's make samples of an
    edit. contrastive: the worse answer is edited into the better one. equal: into one as good.
    warm_up: into itself."""

    correction: CorrectionConfig = CorrectionConfig()
    """Of warm_up, equal and contrastive."""

    negatives: NegativesConfig | None = None
    """Ask a teacher for a worse response to every example, after the recipe."""

    max_bad_ratio: float | None = Field(default=None, ge=0, le=1)
    """Share of bad rows above which the job fails. None takes the job's."""

    @model_validator(mode="after")
    def _one_origin(self) -> "SourceConfig":
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give exactly one of path and dataset")
        if self.dataset is not None and self.field is not None:
            raise ValueError("field: is for files of a path; a dataset has rows of its own")
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
                f"correction has no effect with recipe {self.recipe!r}; it is of the recipes "
                "warm_up, equal and contrastive"
            )
        if self.recipe != "warm_up" and self.correction.changed("warm_up_ratio"):
            raise ValueError(
                f"correction.warm_up_ratio has no effect with recipe {self.recipe!r}; it is of the "
                "recipe warm_up"
            )
        if self.recipe is None or self.responses or self.judgement:
            return self
        # A persona's statements need a user_info where its name is not known.
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
    """Rule-written MetaAlign data over checkable preferences."""

    examples: int = Field(default=20_000, ge=100)
    """Training examples to write."""

    cases: int = Field(default=400, ge=20)
    """Held-out cases to write for each metric of the evaluation."""

    max_preferences: Literal[1, 2] = 2
    """Most preferences that one speaker states at once."""

    held_out_ratio: float = Field(default=0.2, gt=0, lt=1)
    """Share of the (query, preference family) combinations that training never sees."""

    negatives: NegativesConfig | None = None
    """Ask a teacher for a worse response to every example."""


class TokenizerConfig(Section):
    """The tokenizer: loaded, or trained on the prepared text."""

    path: str | None = None
    """Hugging Face folder, name under the storage, or hub name. None trains a byte-level BPE."""

    vocabulary_size: int = Field(default=1024, ge=270)
    """Size of a trained vocabulary, control tokens included. A tokenizer of a path has its own."""

    @model_validator(mode="after")
    def _of_a_trained_one(self) -> "TokenizerConfig":
        if self.path is not None and self.changed("vocabulary_size"):
            raise ValueError(
                "vocabulary_size has no effect on the tokenizer of path, which has its own; leave "
                "one of them out"
            )
        return self


class PrepareConfig(Section):
    """`python -m ray_jobs.prepare CONFIG.yaml section.key=value ...`"""

    storage: AbsolutePath
    """Root of all outputs: an absolute path or a file:// URI that every node sees."""

    output: FolderName = "store"
    """Name of the token store under the storage."""

    sources: tuple[SourceConfig, ...] = ()
    """Files to read."""

    recipes: RecipesConfig | None = None
    """Rule-written data, beside or instead of sources. None writes none."""

    teachers: dict[str, TeacherConfig] = Field(default_factory=dict)
    """Upstream models, by the name that sources give them. Answers are kept in the folder `answers`
    under the storage by what was asked, so that no later job pays for them again."""

    tokenizer: TokenizerConfig = TokenizerConfig()

    held_out_ratio: float = Field(default=0.1, ge=0, lt=1)
    """Share of the conversations of each source that is held out of training, chosen by hash."""

    held_out_families: tuple[str, ...] = ()
    """Preference families that the recipes keep for the held-out split, such as `greeting` or
    `punctuation:no_comma`, each with its opposite: families that training never sees."""

    share: tuple[float, float] = (0.0, 1.0)
    """Which of the training conversations the store takes, by hash: [0, 0.5] for a first stage and
    [0.5, 1] for a second one of the same seed, which share none; of rule-written ones, which
    queries. Held-out ones are in both."""

    near_duplicates: float | None = Field(default=None, gt=0, le=1)
    """Similarity of what users say, from which an example of the sources counts as a near-duplicate
    of a held-out one and is left out of training; 0.8 is usual. None leaves all of them in.
    Rule-written data is split by what it asks and prefers, and is not looked at."""

    context: int | None = Field(default=None, ge=1)
    """Largest context that will be trained at. Examples whose System Info, User Info and last query
    alone are longer are told by tier and length; training leaves them out. None tells none."""

    oppose_personas: bool = True
    """Put every statement of a persona under its declared opposite too, labels flipped."""

    max_bad_ratio: float = Field(default=0.05, ge=0, le=1)
    """Share of bad source rows, or of examples that a teacher gave no answer for, above which the
    job fails."""

    max_lost_text_ratio: float = Field(default=0.01, ge=0, le=1)
    """Share of the checked texts of a source that the tokenizer may fail to give back, above which
    the job fails. Of each file the first 100 rows are checked, and every 50th of the others."""

    seed: int = Field(default=0, ge=0)
    """Seed of recipes and splits."""

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
        unasked = sorted(set(self.teachers) - {ask.teacher for ask in self.asks()})
        if unasked:
            problems.append(f"teachers: nothing is asked of {', '.join(unasked)}")
        if problems:
            raise ValueError(f"{'; '.join(problems)}; leave out what has no effect")
        return self

    def asks(self) -> list[AskConfig]:
        """Everything that is asked of teachers."""
        asks = [ask for each in self.sources for ask in (each.responses, each.judgement)]
        asks += [each.negatives for each in (*self.sources, self.recipes) if each is not None]
        return [ask for ask in asks if ask is not None]
