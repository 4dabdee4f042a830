"""What a row asks: its messages, its transcript, or a question with what belongs to it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from metaalign.data.formats.fields import items, short, text
from metaalign.errors import RowError
from metaalign.examples import Turn

PROMPT_KEYS = ("prompt", "instruction", "question", "query", "input")
"""Where a prompt stands, in the order in which they are looked for."""

SYSTEM_KEYS = ("system", "system_prompt")
_TRANSCRIPT = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "bot": "assistant",
    "system": "system",
    "developer": "system",
}


class Dialogue(NamedTuple):
    """What was said, and the system message before it."""

    turns: list[Turn]
    system_info: str = ""


def read_prompt(row: Mapping[str, Any]) -> Dialogue | None:
    """The prompt of a row, with its system message, history and input; None where it has none.

    Raises:
        RowError: one of them is of a wrong type.
    """
    key = next((name for name in PROMPT_KEYS if row.get(name) is not None), None)
    system = next((text(row, name) for name in SYSTEM_KEYS if row.get(name) is not None), "")
    if key is None:
        return None
    if not isinstance(row[key], str):
        said = read_messages(row, key)
        return Dialogue(said.turns, said.system_info or system)
    asked = text(row, key)
    if _TRANSCRIPT.match(asked):
        turns = read_transcript(asked, key)
        open_end = turns[-1].role == "assistant" and not turns[-1].text
        return Dialogue(turns[:-1] if open_end else turns, system)
    more = [text(row, name, "") for name in ("input", "context") if name != key]
    asked = "\n\n".join([asked, *(part for part in more if part.strip())])
    return Dialogue([*_history(row), Turn("user", asked)], system)


def _history(row: Mapping[str, Any]) -> list[Turn]:
    turns = []
    for exchange in items(row, "history", of=list, default=()):
        if len(exchange) != 2:
            raise RowError(f"history: expected [query, answer], got {short(exchange)}")
        pair = {"query": exchange[0], "answer": exchange[1]}
        turns += [Turn("user", text(pair, "query")), Turn("assistant", text(pair, "answer"))]
    return turns


def is_transcript(value: Any) -> bool:
    """Whether it is a text of turns that begin with Human: and Assistant:."""
    return isinstance(value, str) and _TRANSCRIPT.match(value) is not None


def read_transcript(said: str, key: str) -> list[Turn]:
    """The turns of a text such as "\\n\\nHuman: Hi\\n\\nAssistant: Hello!".

    Raises:
        RowError: it does not begin so.
    """
    start, *parts = _TRANSCRIPT.split(said)
    if start.strip() or not parts:
        raise RowError(f"{key}: a transcript must begin with '\\n\\nHuman:', got {said[:40]!r}")
    return [
        Turn("user" if speaker == "Human" else "assistant", words.strip())
        for speaker, words in zip(parts[::2], parts[1::2], strict=True)
    ]


def read_messages(row: Mapping[str, Any], key: str) -> Dialogue:
    """The turns of a list of messages; a system message may stand before them.

    Raises:
        RowError: it is no list of messages of those who take part.
    """
    messages = [read_message(message, key) for message in items(row, key)]
    system = messages.pop(0)[1] if messages and messages[0][0] == "system" else ""
    if any(role == "system" for role, _ in messages):
        raise RowError(f"{key}: a system message may only stand first")
    turns = [Turn(role, words) for role, words in messages]  # pyright: ignore[reportArgumentType]
    return Dialogue(turns, system)


def read_message(message: Mapping[str, Any], key: str) -> tuple[str, str]:
    """Who speaks and what, of {"role", "content"} or {"from", "value"}.

    Raises:
        RowError: the speaker is unknown, or what is said is no text.
    """
    speaker, said = ("from", "value") if message.get("role") is None else ("role", "content")
    role = text(message, speaker)
    if role not in _ROLES:
        known = ", ".join(sorted(_ROLES))
        raise RowError(f"{key}: {speaker}: expected one of {known}, got {short(role)}")
    content = message.get(said)
    if not isinstance(content, list):
        return _ROLES[role], text(message, said)
    return _ROLES[role], "".join(_part(part, key) for part in items(message, said))


def _part(part: Mapping[str, Any], key: str) -> str:
    if part.get("type") != "text":
        raise RowError(
            f"{key}: only text can be trained on, got a part of type {part.get('type')!r}"
        )
    return text(part, "text")


def same_turns(one: Sequence[Turn], other: Sequence[Turn]) -> bool:
    """Whether two dialogues say the same, but for blanks around it."""
    return [(turn.role, turn.text.strip()) for turn in one] == [
        (turn.role, turn.text.strip()) for turn in other
    ]
