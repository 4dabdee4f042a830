"""Settings of teachers: models on other servers that write responses and negatives, and judge, for
the prepare job."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from metaalign.config.sections import Section


class TeacherConfig(Section):
    """An OpenAI-compatible endpoint, with rate and cost limits."""

    base_url: str = Field(pattern=r"^https?://[^\s@]+$")
    """Address of the API, such as https://api.openai.com/v1, or http://127.0.0.1:8000/v1 for
    metaalign's own server."""

    model: str = Field(min_length=1)
    """Name of the model on that server."""

    version: str = ""
    """Version of the model, for servers that replace a model under the same name: stored answers of
    another version are not reused. metaalign's server reports its version itself. If empty, other
    servers' answers are stored by base_url."""

    tiers: Literal["auto", "fields", "system_message"] = "auto"
    """Where requests carry the User Info. fields: in metaalign's field `user_info`. system_message:
    in the system message, below the System Info. auto: in the field if the server is metaalign's,
    else in the system message."""

    key: str = Field(default="OPENAI_API_KEY", pattern=r"^[A-Z_][A-Z0-9_]*$")
    """Name of the environment variable that holds the API key, on the machine where the job
    runs."""

    extra: dict[str, Any] = Field(default_factory=dict)
    """Additional fields of every request, such as {reasoning_effort: low}. null removes a field, as
    in {temperature: null, max_tokens: null, max_completion_tokens: 900}."""

    concurrency: int = Field(default=16, ge=1, le=1000)
    """Most requests in flight at once."""

    requests_per_minute: float | None = Field(default=None, gt=0)
    """Most requests sent per minute, evenly spaced. None sets no limit."""

    tokens_per_minute: int | None = Field(default=None, ge=1)
    """Most tokens per minute, in prompts and answers together. None sets no limit."""

    timeout_s: float = Field(default=120.0, gt=0)
    """Seconds to wait for one answer."""

    max_retries: int = Field(default=5, ge=0, le=100)
    """Most retries of a request after a server error, a rate-limit error or a timeout. The pause
    before a retry doubles up to a minute, and is never shorter than the server's retry-after."""

    input_price: float = Field(default=0.0, ge=0)
    """Price of a million tokens of prompts, in any currency."""

    output_price: float = Field(default=0.0, ge=0)
    """Price of a million tokens of answers."""

    max_cost: float | None = Field(default=None, gt=0)
    """Cost, by the prices above, at which a job sends no further request and fails. Requests in
    flight are still completed, and all answers are stored. None sets no limit."""

    @model_validator(mode="after")
    def _check_prices(self) -> "TeacherConfig":
        if self.max_cost is not None and not (self.input_price or self.output_price):
            raise ValueError("max_cost needs input_price, output_price or both")
        return self

    @field_validator("extra")
    @classmethod
    def _check_extra(cls, extra: dict[str, Any]) -> dict[str, Any]:
        taken = [name for name in ("model", "messages", "stream", "n") if name in extra]
        if taken:
            raise ValueError(f"{', '.join(taken)} cannot be given here")
        return extra


class AskConfig(Section):
    """Which teacher to use, and how its answers are sampled."""

    teacher: str
    """Name of one of `teachers`."""

    max_tokens: int = Field(default=1024, ge=1)
    """Most tokens of an answer."""

    temperature: float = Field(default=1.0, ge=0, le=2)
    """Sampling temperature. 0 is greedy decoding."""

    top_p: float | None = Field(default=None, gt=0, le=1)
    """Nucleus sampling: sample from the smallest set of likeliest tokens with at least this total
    probability. None samples from all tokens."""

    @model_validator(mode="after")
    def _check_top_p(self) -> "AskConfig":
        if self.top_p is not None and self.temperature == 0:
            raise ValueError(
                "top_p has no effect at temperature 0, which is greedy decoding; leave it out, or "
                "raise temperature"
            )
        return self


class ResponsesConfig(AskConfig):
    """Responses written for prompts that have none."""

    samples: int = Field(default=1, ge=1, le=64)
    """Responses to each prompt. With more than one, `judgement` scores them."""

    @model_validator(mode="after")
    def _check_samples(self) -> "ResponsesConfig":
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("samples above 1 would be equal at temperature 0; raise one of them")
        return self


class JudgementConfig(AskConfig):
    """Scores for the responses of an example, from 1 to 10 for each objective. They replace the
    scores or the order that the source gives."""

    temperature: float = Field(default=0.0, ge=0, le=2)
    """Sampling temperature. 0 is greedy decoding."""

    objectives: dict[str, str] = Field(
        default={"preference": "Which serves this user best, given all that is told above"},
        min_length=1,
    )
    """Objective -> the question that the judge scores. The scores of several objectives are
    averaged into `preference`, unless `preference` is one of them."""

    orders: Literal[1, 2] = 2
    """1 shows the judge the responses once, in a random order. 2 also shows them in the reverse
    order and averages the two scores, since judges favour a position."""


class NegativesConfig(AskConfig):
    """A negative for every example: a response that counts as worse than the best one, and as equal
    to the worst one. A reply that obeys the example's checkable preferences, or is too similar to
    the best response, is requested again."""

    way: Literal["sampled", "hidden", "hidden_tails"] = "sampled"
    """How the teacher writes a negative. sampled: it answers under the same meta-prompt, as in
    MetaAlign's second stage, where the teacher is the model of the first stage. hidden: it answers
    without System Info and User Info. hidden_tails (BDHS): each sentence of the best response is
    cut, and the teacher completes it without System Info and User Info; the server must support
    continue_final_message, as metaalign's and vLLM do. The two hidden ways write no negative for
    examples without a meta-prompt or of the recipe consensus."""

    replace: bool = False
    """True replaces all responses except the best one by the negative, as MetaAlign does; false
    adds the negative. With true, a model can score well without reading the meta-prompt: pairs
    whose order two meta-prompts reverse are lost."""

    tries: int = Field(default=3, ge=1, le=32)
    """Most requests to the teacher for one negative. An example that needs the negative is left out
    if all fail: one with `replace`, or one without two responses in a strict order."""

    most_alike: float = Field(default=0.9, gt=0, le=1)
    """Word similarity, 0 to 1, at which two responses, or their tails, count as too similar."""
