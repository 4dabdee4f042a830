"""OpenAI-compatible models, metaalign's own server among them.

`ask` asks once. A `Client` asks much: at a limited rate, again after failures, and never twice for
the same answer. Nobody else in the house speaks to such a server.
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
