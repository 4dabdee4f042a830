"""Asking a teacher, and what counts as an answer."""

from collections.abc import Awaitable, Callable

from metaalign.upstream import AnswerError, Reply, Request

Ask = Callable[[str, Request], Awaitable[Reply]]
"""Takes the name of a teacher and what to ask."""

_CUT = {
    "length": "an answer was cut off; raise max_tokens, or ask for a shorter one",
    "content_filter": "an answer was withheld by the server's filter",
}


def whole_answer(reply: Reply) -> str:
    """The text of an answer that came to its end.

    Raises:
        AnswerError: it is empty, was cut off or withheld.
    """
    if reply.finish_reason in _CUT:
        raise AnswerError(_CUT[reply.finish_reason])
    if not reply.text.strip():
        raise AnswerError("an answer is empty")
    return reply.text.strip()
