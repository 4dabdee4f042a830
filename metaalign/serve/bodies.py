"""The fields of a request body: OpenAI's chat completions, plus tiers and preferences.

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
"""Fields that OpenAI or vLLM support and this server does not, with the values that have no effect.
Null and these values are accepted; any other value is refused."""

IGNORED = frozenset(
    {"metadata", "prompt_cache_key", "prompt_cache_retention", "request_id", "safety_identifier"}
    | {"service_tier", "store", "user"}
)
"""Fields of a request that never change an answer."""

IGNORED_IN_MESSAGE = frozenset({"cache_control", "id", "name"})
"""Fields of a message, or of a part of one, that never change an answer. The template does not
render a participant's name, and clients cannot control this server's cache."""

ECHOED = frozenset(
    {"annotations", "audio", "function_call", "images", "parsed", "provider_specific_fields"}
    | {"reasoning", "reasoning_content", "reasoning_details", "refusal", "tool_call_id"}
    | {"tool_calls"}
)
"""Fields of an answer that clients send back in the next request. They are ignored if null or
empty, and refused otherwise."""


class Body(BaseModel):
    """Shared rules of every part of a request: unknown fields and infinite numbers are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _check_unicode(cls, value: Any) -> Any:
        """Refuse half of a surrogate pair, which JSON can escape and no tokenizer can read."""
        try:
            return value.encode("utf-8").decode() if isinstance(value, str) else value
        except UnicodeEncodeError as error:
            raise ValueError(f"is not valid Unicode at character {error.start}") from error


def _drop_ignored_fields(message: Any) -> Any:
    """A message, or a part of one, without the fields that never change an answer."""
    if not isinstance(message, dict):
        return message
    return {
        key: value
        for key, value in message.items()
        if key not in IGNORED_IN_MESSAGE and not (key in ECHOED and value in (None, "", [], {}))
    }


class TextPart(Body):
    """One part of a message whose content is a list, such as {"type": "text", "text": "Hello"}."""

    type: Literal["text"]
    text: str

    _drop_ignored = model_validator(mode="before")(_drop_ignored_fields)


class Message(Body):
    """One message. `user_info`, on a user's message, replaces the User Info from there on."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    user_info: str | None = None

    _drop_ignored = model_validator(mode="before")(_drop_ignored_fields)

    @property
    def text(self) -> str:
        """The content; the parts of a list are joined."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class PreferenceEntry(Body):
    """A preference by name, such as {"family": "bullets", "parameter": 3}."""

    family: str
    parameter: Annotated[str, Field(max_length=200)] | int | None = None


class StreamOptions(Body):
    """OpenAI's options of a stream. `include_obfuscation` is accepted and has no effect."""

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
    """Null means 0: greedy decoding."""

    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    continue_final_message: bool | None = None
    """True continues the last message, which must be an assistant's. As in vLLM."""

    add_generation_prompt: bool | None = None
    """Must be false with continue_final_message and true without it. As in vLLM."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, request: Any) -> Any:
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
    def _check_agreement(self) -> "ChatRequest":
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            raise ValueError("max_tokens: contradicts max_completion_tokens; give one of the two")
        if self.add_generation_prompt is bool(self.continue_final_message):
            raise ValueError(
                "add_generation_prompt: must be false with continue_final_message and true without "
                "it"
            )
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: needs stream to be true")
        return self

    @property
    def most_tokens(self) -> int | None:
        """The limit on the answer, under either of its two names; None if neither was given."""
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens
