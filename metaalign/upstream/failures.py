"""Sorts a server's failures into temporary and permanent ones, and sets the pause before a
retry."""

import openai
import tenacity

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0

_PASSING = frozenset({408, 409, 425, 429})
"""Status codes below 500 of temporary failures."""

_CLOSED = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)
"""Errors that every further request would meet too."""


def status_of(error: object) -> int:
    """The HTTP status of an error, or 0."""
    return getattr(error, "status_code", None) or 0


def is_closed(error: object) -> bool:
    """Whether the server refuses the API key, or does not have the model."""
    return isinstance(error, _CLOSED)


def is_out_of_credit(error: object) -> bool:
    """Whether the account has no credit left."""
    return status_of(error) == 402 or getattr(error, "code", None) == "insufficient_quota"


def may_pass(error: BaseException) -> bool:
    """Whether the failure is temporary, so that the same request may succeed later."""
    passing = status_of(error) in _PASSING or status_of(error) >= 500
    gone = isinstance(error, openai.APIConnectionError)
    return (passing or gone) and not is_out_of_credit(error)


def pause(state: tenacity.RetryCallState) -> float:
    """Seconds before a retry: exponential with jitter, and at least the server's retry-after."""
    doubling = tenacity.wait_random_exponential(FIRST_PAUSE_S, LONGEST_PAUSE_S)(state)
    error = state.outcome.exception() if state.outcome is not None else None
    headers = getattr(getattr(error, "response", None), "headers", {})
    try:
        return max(doubling, float(headers.get("retry-after", 0)))
    except ValueError:  # retry-after is a date
        return LONGEST_PAUSE_S


def short(value: object) -> str:
    """The text of an error or a reply, in one line of at most 300 characters."""
    return " ".join(str(value).split())[:300]
