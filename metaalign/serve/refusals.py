"""Error responses in OpenAI's shape.

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
    """An error response in OpenAI's shape: the argument of a RequestError in this package."""

    status: int
    """HTTP status."""

    message: str
    param: str | None = None
    code: str | None = None

    def __str__(self) -> str:
        return self.message

    def body(self) -> dict[str, Any]:
        """The JSON body. Characters that UTF-8 cannot encode are escaped."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": {key: _printable(value) for key, value in error.items()}}


def refuse_invalid(problems: Sequence[Any]) -> Refusal:
    """The refusal that lists all of pydantic's `problems`; `param` names the field of the first."""
    explained = [_explain(problem) for problem in problems]
    message = "; ".join(f"{place}: {text}" if place else text for place, text in explained)
    place, text = explained[0]
    named = re.match(r"(\w+)(, \w+)*: ", text)
    return Refusal(400, message, place or (named[1] if named else None))


def _explain(problem: Any) -> tuple[str, str]:
    """(the field's path, what is wrong with it)."""
    *parents, field = problem["loc"] or ("body",)
    location: list[str | int] = [part for part in parents if part not in _NOT_FIELDS]
    if field not in _NOT_FIELDS or problem["type"] == "extra_forbidden":
        location.append(field)
    if problem["type"] == "json_invalid":
        return "", f"the body is not valid JSON ({problem.get('ctx', {}).get('error')})"
    if problem["type"] == "model_attributes_type" and not location:
        return "", "the body was not parsed as JSON; send the header Content-Type: application/json"
    place = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in location).removeprefix(".")
    if problem["type"] == "extra_forbidden" and field in ECHOED:
        return place, "not supported by this server"
    if problem["type"] == "extra_forbidden":
        return place, f"unknown field{_hint(location)}"
    return place, problem["msg"].removeprefix("Value error, ").removeprefix("Input ")


_NOT_FIELDS = frozenset({"body", "list[TextPart]", "str", "int", "constrained-str"})
"""Parts of pydantic's locations that are not fields: the source, and the alternatives of a
union."""


def _hint(location: Sequence[str | int]) -> str:
    """A suggestion for the unknown field at `location`, or the list of known fields."""
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
    """The RequestError, with status 400, for a problem with one field."""
    return RequestError(Refusal(400, f"{param}: {message}", param, code))


def _printable(text: str | None) -> str | None:
    return None if text is None else text[:2000].encode("utf-8", "backslashreplace").decode()
