"""What a request's body may hold: OpenAI's chat completions, plus tiers and preferences.

{"model": "metaalign", "messages": [{"role": "user", "content": "Capital of Peru?"}],
 "system_info": "You work for a library.", "user_info": "I am a pilot.",
 "preferences": [{"family": "bullets", "parameter": 3}], "max_tokens": 32}
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

HARMLESS: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "chat_template_kwargs": ({},),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "ignore_eos": (False,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "min_p": (0,),
    "modalities": (["text"],),
    "n": (1,),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "skip_special_tokens": (True,),
    "stop": ([], ""),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_k": (-1, 0),
    "top_logprobs": (0,),
    "verbosity": (),
    "web_search_options": (),
}
"""Fields that OpenAI and vLLM know and this server does not: the values, beside null, that ask for
nothing."""

IGNORED = frozenset(
    {"metadata", "prompt_cache_key", "prompt_cache_retention", "request_id", "safety_identifier"}
    | {"service_tier", "store", "user"}
)
"""Fields of a request that never change an answer."""

IGNORED_IN_MESSAGE = frozenset({"cache_control", "id", "name"})
"""Fields of a message, or of a part of one, that never change an answer. The template has no place
for a participant's name, and this server's cache takes no orders."""

ECHOED = frozenset(
    {"annotations", "audio", "function_call", "images", "parsed", "provider_specific_fields"}
    | {"reasoning", "reasoning_content", "reasoning_details", "refusal", "tool_call_id"}
    | {"tool_calls"}
)
"""Fields that clients echo with an answer. Null or empty, they say nothing; others are refused."""


class Body(BaseModel):
    """A part of a request. Unknown fields are refused, and numbers must be finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _readable(cls, value: Any) -> Any:
        """JSON can escape half of a surrogate pair, which no tokenizer can read."""
        try:
            return value.encode("utf-8").decode() if isinstance(value, str) else value
        except UnicodeEncodeError as error:
            raise ValueError(f"is not valid Unicode at character {error.start}") from error


def _without_habits(said: Any) -> Any:
    """A message, or a part of one, without the fields that change no answer."""
    if not isinstance(said, dict):
        return said
    return {
        key: value
        for key, value in said.items()
        if key not in IGNORED_IN_MESSAGE and not (key in ECHOED and value in (None, "", [], {}))
    }


class TextPart(Body):
    type: Literal["text"]
    text: str

    _drop_habits = model_validator(mode="before")(_without_habits)


class Message(Body):
    """One message. `user_info`, on a user's message, replaces the User Info from there on."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    user_info: str | None = None

    _drop_habits = model_validator(mode="before")(_without_habits)

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class PreferenceEntry(Body):
    """A preference by name, such as {"family": "bullets", "parameter": 3}."""

    family: str
    parameter: Annotated[str, Field(max_length=200)] | int | None = None


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: bool = False


class ChatRequest(Body):
    """POST /v1/chat/completions."""

    model: str
    messages: list[Message] = Field(min_length=1)
    system_info: str | None = None
    user_info: str | None = None
    preferences: list[PreferenceEntry] = Field(default=[], max_length=16)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    """Null is 0, the likeliest token: what was told decides, not the draw."""

    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    continue_final_message: bool | None = None
    """The last message is the beginning of the answer, which goes on from it; vLLM's name."""

    add_generation_prompt: bool | None = None
    """vLLM's name, too: false goes with continue_final_message, true without it."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _unsupported(cls, request: Any) -> Any:
        if not isinstance(request, dict):
            return request
        unsupported = [
            key
            for key, harmless in HARMLESS.items()
            if request.get(key) is not None and request[key] not in harmless
        ]
        if unsupported:
            raise ValueError(f"{', '.join(unsupported)}: not supported by this server")
        return {
            key: value
            for key, value in request.items()
            if key not in HARMLESS and key not in IGNORED
        }

    @model_validator(mode="after")
    def _agree(self) -> "ChatRequest":
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            raise ValueError("max_tokens: contradicts max_completion_tokens; give one of the two")
        if self.add_generation_prompt is bool(self.continue_final_message):
            raise ValueError(
                "add_generation_prompt: is true without continue_final_message, and false with it"
            )
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: needs stream to be true")
        return self

    @property
    def most_tokens(self) -> int | None:
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens
