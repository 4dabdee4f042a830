"""Every refusal, in OpenAI's error shape.

{"error": {"message": "temprature: unknown field (did you mean temperature?)",
           "type": "invalid_request_error", "param": "temprature", "code": null}}
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from metaalign.errors import RequestError, did_you_mean
from metaalign.serve.bodies import (
    ECHOED,
    Body,
    ChatRequest,
    Message,
    PreferenceEntry,
    StreamOptions,
    TextPart,
)


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
    if problem["type"] == "extra_forbidden" and field in ECHOED:
        return place, "not supported by this server"
    if problem["type"] == "extra_forbidden":
        return place, f"unknown field{_hint(location)}"
    return place, problem["msg"].removeprefix("Value error, ").removeprefix("Input ")


_NO_PLACES = frozenset({"body", "list[TextPart]", "str", "int", "constrained-str"})
"""What pydantic puts into a location that is no field: the source, alternatives of a union."""


def _hint(location: Sequence[str | int]) -> str:
    """What the unknown field at `location` may have been meant to be."""
    fields: Sequence[str] = list(ChatRequest.model_fields)
    for parent, model in _PARENTS.items():
        if parent in location[:-1]:
            fields = list(model.model_fields)
    name = str(location[-1]) if location else ""
    return did_you_mean(name, fields) or f" (known: {', '.join(fields)})"


_PARENTS: dict[str, type[Body]] = {
    "messages": Message,
    "content": TextPart,
    "preferences": PreferenceEntry,
    "stream_options": StreamOptions,
}


def refused(param: str, message: str, code: str | None = None) -> RequestError:
    """The error that tells a client what is wrong with a field."""
    return RequestError(Refusal(400, f"{param}: {message}", param, code))


def _printable(text: str | None) -> str | None:
    return None if text is None else text[:2000].encode("utf-8", "backslashreplace").decode()
