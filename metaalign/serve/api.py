"""The request and response models: OpenAI's chat completions, plus tiers and preferences.

Turns a request into segments, and every refusal into OpenAI's error shape. Knows no model, no Ray
and no transport. A request with all that is ours:

    {"model": "metaalign", "messages": [{"role": "user", "content": "Capital of Peru?"}],
     "system_info": "You work for a library.", "user_info": "I am a pilot.",
     "preferences": [{"family": "bullets", "parameter": 3}], "max_tokens": 32}

A `system` message is the System Info under its OpenAI name; `preferences` are put into words and
follow the User Info. An error:

    {"error": {"message": "temprature: unknown field (did you mean temperature?)",
               "type": "invalid_request_error", "param": "temprature", "code": null}}
"""

import difflib
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from metaalign.config import ServeConfig
from metaalign.errors import ConfigError, RequestError
from metaalign.examples import Turn
from metaalign.generate.embedded import Sampling
from metaalign.preferences import FAMILIES, Preference
from metaalign.template import Segment, Template, prompt_segments

HARMLESS: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": (),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "stop": ([], ""),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": (),
    "web_search_options": (),
}
"""OpenAI fields that are not supported: the values, beside null, that ask for nothing."""

IGNORED = frozenset(
    {"metadata", "prompt_cache_key", "safety_identifier", "service_tier", "store", "user"}
)
"""OpenAI fields that never change an answer."""

IGNORED_IN_MESSAGE = frozenset({"annotations", "audio", "function_call", "refusal", "tool_calls"})
"""Fields of a message that clients echo; null or empty, they say nothing."""


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


class TextPart(Body):
    type: Literal["text"]
    text: str


class Message(Body):
    """One message. `user_info`, on a user's message, replaces the User Info from there on."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    user_info: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_echoes(cls, message: Any) -> Any:
        if not isinstance(message, dict):
            return message
        return {
            key: value
            for key, value in message.items()
            if not (key in IGNORED_IN_MESSAGE and (value is None or value == []))
        }

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
    def _one_limit(self) -> "ChatRequest":
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            raise ValueError("max_tokens: contradicts max_completion_tokens; give one of the two")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: needs stream to be true")
        return self

    @property
    def most_tokens(self) -> int | None:
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens


class Refusal(NamedTuple):
    """An error in OpenAI's shape; what a RequestError of this room carries."""

    status: int
    """HTTP status."""

    message: str
    param: str | None = None
    code: str | None = None

    def __str__(self) -> str:
        return self.message

    def body(self) -> dict[str, Any]:
        """What goes over the wire; text that UTF-8 cannot carry is escaped."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": {key: _printable(value) for key, value in error.items()}}


class Prompt(NamedTuple):
    """A rendered prompt: its tokens, and how many of them each tier takes."""

    tokens: list[int]
    counts: dict[str, int]


def refuse_invalid(problems: Sequence[Any]) -> Refusal:
    """What a request with pydantic's `problems` is told: every one, the first one as `param`."""
    explained = [_explain(problem) for problem in problems]
    message = "; ".join(f"{place}: {text}" if place else text for place, text in explained)
    place, text = explained[0]
    named = re.match(r"(\w+)(, \w+)*: ", text)
    return Refusal(400, message, place or (named[1] if named else None))


def _explain(problem: Any) -> tuple[str, str]:
    """(place, what is wrong there)."""
    *parents, field = problem["loc"] or ("body",)
    location: list[str | int] = [part for part in parents if part not in _NO_PLACES]
    if field not in _NO_PLACES or problem["type"] == "extra_forbidden":
        location.append(field)
    if problem["type"] == "json_invalid":
        return "", f"the body is not valid JSON ({problem.get('ctx', {}).get('error')})"
    if problem["type"] == "model_attributes_type" and not location:
        return "", "the body is not read as JSON; send the header Content-Type: application/json"
    place = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in location).removeprefix(".")
    if problem["type"] == "extra_forbidden":
        return place, f"unknown field ({_hint(location)})"
    return place, problem["msg"].removeprefix("Value error, ").removeprefix("Input ")


_NO_PLACES = frozenset({"body", "list[TextPart]", "str", "int", "constrained-str"})
"""What pydantic puts into a location that is no field: the source, alternatives of a union."""


def _hint(location: Sequence[str | int]) -> str:
    """What the unknown field at `location` may have been meant to be."""
    fields: Sequence[str] = list(ChatRequest.model_fields)
    for parent, model in _PARENTS.items():
        if parent in location[:-1]:
            fields = list(model.model_fields)
    close = difflib.get_close_matches(str(location[-1]) if location else "", fields, n=1)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(fields)}"


_PARENTS: dict[str, type[Body]] = {
    "messages": Message,
    "content": TextPart,
    "preferences": PreferenceEntry,
    "stream_options": StreamOptions,
}


def to_segments(request: ChatRequest) -> list[Segment]:
    """The segments of a request: who says what, in the order of the template.

    Raises:
        RequestError: carries the Refusal.
    """
    system_info, messages = _split_system(request)
    turns = [_to_turn(number, message) for number, message in messages]
    for (number, message), (_, before) in zip(messages[1:], messages, strict=False):
        if message.role == before.role:
            raise _refused(
                f"messages[{number}]", f"a second {message.role} message in a row; join the two"
            )
    if not turns or turns[0].role != "user" or turns[-1].role != "user":
        raise _refused("messages", "must begin and end with a user message")
    spoken = [say_preference(number, entry) for number, entry in enumerate(request.preferences)]
    user_info = " ".join(text for text in (request.user_info, *spoken) if text)
    return prompt_segments(system_info=system_info, user_info=user_info, turns=turns)


def _split_system(request: ChatRequest) -> tuple[str, list[tuple[int, Message]]]:
    numbered = list(enumerate(request.messages))
    system = [number for number, m in numbered if m.role in ("system", "developer")]
    if not system:
        return request.system_info or "", numbered
    if len(system) > 1:
        raise _refused(f"messages[{system[1]}]", "a second system message; join it with the first")
    if system[0] != 0:
        raise _refused(f"messages[{system[0]}]", "the system message must stand first")
    if request.system_info is not None:
        raise _refused("system_info", "given beside a system message; both are one tier, give one")
    if request.messages[0].user_info:
        raise _refused("messages[0].user_info", "only a user message may carry it")
    return request.messages[0].text, numbered[1:]


def _to_turn(number: int, message: Message) -> Turn:
    if not message.text.strip():
        raise _refused(f"messages[{number}].content", "is empty")
    if message.role == "user":
        return Turn("user", message.text, message.user_info or "")
    if message.user_info:
        raise _refused(f"messages[{number}].user_info", "only a user message may carry it")
    return Turn("assistant", message.text)


def say_preference(number: int, entry: PreferenceEntry) -> str:
    """The preference in the user's words: the first phrasing of its family.

    Raises:
        RequestError: the family is unknown, or its parameter missing or superfluous.
    """
    if entry.family not in FAMILIES:
        known = f"unknown family {entry.family!r}; known: {', '.join(FAMILIES)}"
        raise _refused(f"preferences[{number}].family", known)
    parameter = "" if entry.parameter is None else str(entry.parameter)
    try:
        return Preference(entry.family, parameter).phrasings("user_info")[0]
    except ConfigError as error:
        raise _refused(f"preferences[{number}].parameter", str(error)) from error


def render(template: Template, segments: Sequence[Segment]) -> Prompt:
    """The tokens of a prompt. Control tokens count for the tier that they open."""
    encoded = template.segment_ids(segments)
    counts: dict[str, int] = {}
    for segment, ids in zip(segments, encoded, strict=True):
        counts[segment.tier] = counts.get(segment.tier, 0) + len(ids)
    counts["response"] = counts.get("response", 0) + 1
    tokens = [id for ids in encoded for id in ids]
    return Prompt([*tokens, template.control_ids["response"]], counts)


def to_sampling(
    request: ChatRequest, prompt: Prompt, *, config: ServeConfig, context: int
) -> Sampling:
    """How a request is answered.

    Raises:
        RequestError: prompt and answer do not fit in the context; tiers are never truncated.
    """
    room = context - len(prompt.tokens)
    if room < (request.most_tokens or 1):
        tiers = ", ".join(f"{tier} {count}" for tier, count in prompt.counts.items())
        message = (
            f"the prompt has {len(prompt.tokens)} tokens ({tiers}) and asks for "
            f"{request.most_tokens or 'at least 1'} more; the model's context is {context}. Tiers "
            "are never truncated: shorten one, or ask for fewer tokens"
        )
        raise _refused("messages", message, code="context_length_exceeded")
    return Sampling(
        max_tokens=request.most_tokens or min(config.max_tokens, room),
        temperature=request.temperature or 0.0,
        top_p=1.0 if request.top_p is None else request.top_p,
        seed=request.seed,
    )


def _refused(param: str, message: str, code: str | None = None) -> RequestError:
    return RequestError(Refusal(400, f"{param}: {message}", param, code))


def _printable(text: str | None) -> str | None:
    return None if text is None else text[:2000].encode("utf-8", "backslashreplace").decode()
