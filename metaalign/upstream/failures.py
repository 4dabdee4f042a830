"""Which failures of a server may pass, and how long to wait for that."""

import openai
import tenacity

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0

_PASSING = frozenset({408, 409, 425, 429})
"""Status codes below 500 of failures that may pass."""

_CLOSED = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)
"""Answers of a server that will answer nothing else."""


def status_of(error: object) -> int:
    """The HTTP status of an error, or 0."""
    return getattr(error, "status_code", None) or 0


def is_closed(error: object) -> bool:
    """Whether the server refuses the key, or has no such model."""
    return isinstance(error, _CLOSED)


def is_out_of_credit(error: object) -> bool:
    """Whether there is nothing left to pay with."""
    return status_of(error) == 402 or getattr(error, "code", None) == "insufficient_quota"


def may_pass(error: BaseException) -> bool:
    """Whether the same request may be answered later."""
    passing = status_of(error) in _PASSING or status_of(error) >= 500
    gone = isinstance(error, openai.APIConnectionError)
    return (passing or gone) and not is_out_of_credit(error)


def pause(state: tenacity.RetryCallState) -> float:
    """Seconds before a request is sent again: what the server asks for, or twice the last pause."""
    doubling = tenacity.wait_random_exponential(FIRST_PAUSE_S, LONGEST_PAUSE_S)(state)
    error = state.outcome.exception() if state.outcome is not None else None
    headers = getattr(getattr(error, "response", None), "headers", {})
    try:
        return max(doubling, float(headers.get("retry-after", 0)))
    except ValueError:  # a date
        return LONGEST_PAUSE_S


def short(told: object) -> str:
    """What an error or a reply says, in one line."""
    return " ".join(str(told).split())[:300]
