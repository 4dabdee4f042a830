"""Clients of OpenAI-compatible servers, including metaalign's own.

`ask` sends one request. A `Client` sends many: it limits their rate, retries after failures and
stores every answer, so that no request is paid for twice. No other package of metaalign sends
requests to such a server.
"""

from metaalign.upstream.answer_files import Answers
from metaalign.upstream.client import AnswerError, Client, Spending
from metaalign.upstream.kept import Kept
from metaalign.upstream.once import ask
from metaalign.upstream.requests import Reply, Request, body_of, key_of
from metaalign.upstream.served import Served, key_in_environment, look_up

__all__ = [
    "AnswerError",
    "Answers",
    "Client",
    "Kept",
    "Reply",
    "Request",
    "Served",
    "Spending",
    "ask",
    "body_of",
    "key_in_environment",
    "key_of",
    "look_up",
]
