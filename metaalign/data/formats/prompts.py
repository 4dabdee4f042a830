"""What a row asks: its messages, its transcript, or a question with what belongs to it."""

from collections.abc import Mapping
from typing import Any

from metaalign.data.formats.fields import is_filled, items, one_of, short, text
from metaalign.data.formats.messages import (
    Dialogue,
    one_system,
    read_messages,
    read_open_transcript,
    words,
)
from metaalign.errors import RowError
from metaalign.examples import Turn

_QUESTIONS = ("prompt", "instruction", "question", "query")
PROMPT_KEYS = (*_QUESTIONS, "input")
"""Where a prompt stands; `input` beside one of the others belongs to it."""

SYSTEM_KEYS = ("system", "system_prompt")
BESIDE = ("input", "context", "history")
"""What may stand beside a question."""


def read_prompt(row: Mapping[str, Any]) -> Dialogue | None:
    """The prompt of a row, with its system message, history and input; None where it has none.

    Raises:
        RowError: one of them is of a wrong type, or would be dropped.
    """
    if all(row.get(name) is None for name in PROMPT_KEYS):
        return None
    asks = any(is_filled(row.get(name)) for name in _QUESTIONS)
    key = one_of(row, _QUESTIONS if asks else PROMPT_KEYS, "a prompt")
    system = read_system(row)
    said = _spoken(row, key)
    if said is not None:
        refuse_beside(row, key)
        return Dialogue(said.turns, one_system(said.system_info, system))
    more = [text(row, name, "") for name in ("input", "context") if name != key]
    asked = "\n\n".join([text(row, key), *(part for part in more if part.strip())])
    return Dialogue([*_history(row), Turn("user", asked)], system)


def _spoken(row: Mapping[str, Any], key: str) -> Dialogue | None:
    """A prompt that is a conversation of its own; None of a question."""
    if not isinstance(row[key], str):
        return read_messages(row, key)
    turns = read_open_transcript(words(row, key), key)
    return None if turns is None else Dialogue(turns)


def read_system(row: Mapping[str, Any]) -> str:
    """The System Info that a row gives beside its prompt.

    Raises:
        RowError: it is no text, or there are two that differ.
    """
    return one_system(*(text(row, name, "") for name in SYSTEM_KEYS))


def refuse_beside(row: Mapping[str, Any], key: str) -> None:
    """Refuse what belongs to a question where the row has a conversation.

    Raises:
        RowError: there is such a thing, and it would be dropped.
    """
    for name in BESIDE:
        if name != key and is_filled(row.get(name)):
            raise RowError(f"{name} beside a conversation in {key}; put it into that conversation")


def _history(row: Mapping[str, Any]) -> list[Turn]:
    turns = []
    for exchange in items(row, "history", of=list, default=()):
        if len(exchange) != 2:
            raise RowError(f"history: expected [query, answer], got {short(exchange)}")
        pair = {"query": exchange[0], "answer": exchange[1]}
        turns += [Turn("user", text(pair, "query")), Turn("assistant", text(pair, "answer"))]
    return turns
