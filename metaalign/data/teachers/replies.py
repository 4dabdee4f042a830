"""Requests to teachers, and the checks of their answers."""

from collections.abc import Awaitable, Callable

from metaalign.config.teacher import AskConfig
from metaalign.examples import Example
from metaalign.upstream import AnswerError, Reply, Request

Ask = Callable[[str, Request], Awaitable[Reply]]
"""Sends a request to the teacher of this name."""

_BROKEN = {
    "length": "an answer was cut off; raise max_tokens, or ask for a shorter one",
    "content_filter": "an answer was withheld by the server's filter",
    "safety": "an answer was withheld by the server's filter",
    **dict.fromkeys(("abort", "error", "cancelled"), "an answer broke off at the server"),
    **dict.fromkeys(("tool_calls", "function_call"), "an answer calls a tool"),
}
"""Error message for each finish reason of an incomplete answer. Servers use different words."""


def request_of(example: Example, config: AskConfig, draw: str, head: str = "") -> Request:
    """A request to answer an example's prompt, with the sampling settings of `config`.

    Args:
        draw: Name of the draw. Another name samples another answer.
        head: Beginning of the answer, which the teacher continues.
    """
    return Request(
        turns=example.turns,
        system_info=example.system_info,
        user_info=example.user_info,
        head=head,
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        draw=draw,
    )


def whole_answer(reply: Reply) -> str:
    """The text of a complete answer.

    Raises:
        AnswerError: the answer is empty, was cut off or withheld.
    """
    if not any_answer(reply, cut_off=False).strip():
        raise AnswerError("an answer is empty")
    return reply.text.strip()


def any_answer(reply: Reply, *, cut_off: bool) -> str:
    """The text of an answer, which may be empty.

    Args:
        cut_off: Whether to accept an answer that reached its maximum length.

    Raises:
        AnswerError: the answer broke off or was withheld.
    """
    if reply.finish_reason in _BROKEN and not (cut_off and reply.finish_reason == "length"):
        raise AnswerError(_BROKEN[reply.finish_reason])
    return reply.text
