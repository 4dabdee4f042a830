"""Settings of teachers: upstream models that answer, judge and write negatives for prepare."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from metaalign.config.sections import Section


class TeacherConfig(Section):
    """An OpenAI-compatible endpoint, and how much may be asked of it."""

    base_url: str = Field(pattern=r"^https?://[^\s@]+$")
    """Such as https://api.openai.com/v1, or http://127.0.0.1:8000/v1 of metaalign's own server."""

    model: str = Field(min_length=1)
    """Its name there."""

    version: str = ""
    """Tells apart models that are served under one name: answers of another version are not used.
    metaalign's server tells its own; of others, answers belong to their base_url where none is
    given."""

    tiers: Literal["auto", "fields", "system_message"] = "auto"
    """Where the User Info goes: into metaalign's field `user_info`, or into the system message,
    below the System Info. auto asks the server which it is."""

    key: str = Field(default="OPENAI_API_KEY", pattern=r"^[A-Z_][A-Z0-9_]*$")
    """Name of the environment variable, where the job runs, that holds the key."""

    extra: dict[str, Any] = Field(default_factory=dict)
    """Further fields of every request, such as {reasoning_effort: low}; null takes a field out,
    such as {temperature: null, max_tokens: null, max_completion_tokens: 900}."""

    concurrency: int = Field(default=16, ge=1, le=1000)
    """Most requests under way at once."""

    requests_per_minute: float | None = Field(default=None, gt=0)
    """Most requests begun in a minute, evenly spaced. None sets no limit."""

    tokens_per_minute: int | None = Field(default=None, ge=1)
    """Most tokens in a minute, prompts and answers. None sets no limit."""

    timeout_s: float = Field(default=120.0, gt=0)
    """Seconds to wait for one answer."""

    max_retries: int = Field(default=5, ge=0, le=100)
    """Times a request is sent again after a failure of the server, a refused rate or a timeout,
    after pauses that double up to a minute, or that the server asks for."""

    input_price: float = Field(default=0.0, ge=0)
    """Price of a million tokens of prompts, in any currency."""

    output_price: float = Field(default=0.0, ge=0)
    """Price of a million tokens of answers."""

    max_cost: float | None = Field(default=None, gt=0)
    """Cost of one job, by the prices, at which it asks no more and fails. What is under way then
    still comes in; all answers are kept."""

    @model_validator(mode="after")
    def _priced(self) -> "TeacherConfig":
        if self.max_cost is not None and not (self.input_price or self.output_price):
            raise ValueError("max_cost needs input_price, output_price or both")
        return self

    @field_validator("extra")
    @classmethod
    def _no_key(cls, extra: dict[str, Any]) -> dict[str, Any]:
        taken = [name for name in ("model", "messages", "stream", "n") if name in extra]
        if taken:
            raise ValueError(f"{', '.join(taken)} cannot be given here")
        return extra


class AskConfig(Section):
    """What is asked of a teacher, and how answers are drawn."""

    teacher: str
    """One of `teachers`."""

    max_tokens: int = Field(default=1024, ge=1)
    """Most tokens of an answer."""

    temperature: float = Field(default=1.0, ge=0, le=2)
    """0 takes the likeliest token each time."""

    top_p: float | None = Field(default=None, gt=0, le=1)
    """Draw from the fewest tokens that hold this much probability. None draws from all."""

    @model_validator(mode="after")
    def _sampled(self) -> "AskConfig":
        if self.top_p is not None and self.temperature == 0:
            raise ValueError(
                "top_p has no effect at temperature 0, which takes the likeliest token each time; "
                "leave it out, or raise temperature"
            )
        return self


class ResponsesConfig(AskConfig):
    """Answers to prompts that have none."""

    samples: int = Field(default=1, ge=1, le=64)
    """Answers to each; more than one are ordered by `judgement`."""

    @model_validator(mode="after")
    def _drawn(self) -> "ResponsesConfig":
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("samples above 1 would be equal at temperature 0; raise one of them")
        return self


class JudgementConfig(AskConfig):
    """Scores of the answers of an example, 1 to 10 for each objective. They take the place of what
    the source says of which is better."""

    temperature: float = Field(default=0.0, ge=0, le=2)
    """0 takes the likeliest token each time."""

    objectives: dict[str, str] = Field(
        default={"preference": "Which serves this user best, given all that is told above"},
        min_length=1,
    )
    """Objective -> what the judge is asked to look at. Of several, `preference` becomes the mean
    unless it is one of them."""

    orders: Literal[1, 2] = 2
    """Ask with the answers in one drawn order, or also in the reverse one and take the mean, since
    judges favour a place."""


class NegativesConfig(AskConfig):
    """A response that is worse than the best one, and as bad as the worst one, for every example.
    What obeys a checkable preference, or is too much like the best one, is asked for again."""

    way: Literal["sampled", "hidden", "hidden_tails"] = "sampled"
    """sampled: what the teacher answers under the same meta-prompt, as MetaAlign's second stage
    asks of the first one's model. hidden: what it answers without System Info and User Info.
    hidden_tails (BDHS): every sentence of the best response is cut, and the teacher ends it without
    seeing them; the server must know continue_final_message, as metaalign's and vLLM do. Examples
    without a meta-prompt, and those of the recipe consensus, have nothing to hide."""

    replace: bool = False
    """Put it in place of all but the best response, as MetaAlign does, rather than beside them.
    Then a model can do well without reading the meta-prompt: where two meta-prompts flip a pair,
    the flip is gone."""

    tries: int = Field(default=3, ge=1, le=32)
    """Times the teacher is asked. An example that needs a negative, having no two responses in
    order or with `replace`, is left out after the last one."""

    most_alike: float = Field(default=0.9, gt=0, le=1)
    """Similarity in words, 0 to 1, from which two responses, or their tails, are too much alike."""
