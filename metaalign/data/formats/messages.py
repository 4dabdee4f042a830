"""What was said, turn by turn: lists of messages, and texts that hold several turns.

    messages    [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    ShareGPT    [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]
    transcript  "\\n\\nHuman: Hi\\n\\nAssistant: Hello!"
    HelpSteer2  "Hi\\n<extra_id_1>Assistant\\nHello!\\n<extra_id_1>User\\nBye"

Knows no row: where in one these stand, the other modules of this room know.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from metaalign.data.formats.fields import is_filled, items, short, text
from metaalign.errors import RowError
from metaalign.examples import Turn

_TRANSCRIPT = re.compile(r"\n\n(Human|Assistant):")
_MARK = re.compile(r"\n<extra_id_1>(User|Assistant)(?:\n|$)")
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "bot": "assistant",
    "system": "system",
    "developer": "system",
}
_CALLS = ("tool_calls", "function_call")
_READ = frozenset({"role", "content", "from", "value", "weight", "train", "messages", *_CALLS})
"""What is read of a message, and of the object in which OpenAI's `input` holds its messages."""


class Dialogue(NamedTuple):
    """What was said, and the system message before it."""

    turns: list[Turn]
    system_info: str = ""


def one_system(*said: str) -> str:
    """The System Info that several places of a row give.

    Raises:
        RowError: two of them differ, and either would be dropped.
    """
    given = {each.strip(): each for each in said if each.strip()}
    if len(given) > 1:
        raise RowError(f"two system texts that differ: {' and '.join(map(short, given))}")
    return next(iter(given.values()), "")


def words(row: Mapping[str, Any], key: str) -> str:
    """The text of a field that may hold messages, too.

    Raises:
        RowError: it is no text, or one that a list of messages was printed into.
    """
    said = text(row, key)
    if said.startswith("[{") and ("'role':" in said or "'content':" in said):
        raise RowError(
            f"{key}: a list of messages that was printed as text; export the rows as JSON lines or "
            "Parquet, which keep lists"
        )
    return said


def is_transcript(value: Any) -> bool:
    """Whether it is a text of turns that begin with Human: and Assistant:."""
    if not isinstance(value, str):
        return False
    begun = value.lstrip().startswith("Human:") and "\n\nAssistant:" in value
    return begun or _TRANSCRIPT.match(value) is not None


def read_transcript(said: str, key: str) -> list[Turn]:
    """The turns of a text such as "\\n\\nHuman: Hi\\n\\nAssistant: Hello!".

    Raises:
        RowError: it does not begin so.
    """
    start, *parts = _TRANSCRIPT.split(f"\n\n{said.lstrip()}" if is_transcript(said) else said)
    if start.strip() or not parts:
        raise RowError(f"{key}: a transcript must begin with '\\n\\nHuman:', got {said[:40]!r}")
    return _turns(parts)


def read_open_transcript(said: str, key: str) -> list[Turn] | None:
    """The turns of a text that an assistant's answer may be missing from; None of one question."""
    if is_transcript(said):
        turns = read_transcript(said, key)
    elif _MARK.search(said):
        turns = _turns(["User", *_MARK.split(said)])
    else:
        return None
    open_end = turns[-1].role == "assistant" and not turns[-1].text
    return turns[:-1] if open_end else turns


def _turns(parts: Sequence[str]) -> list[Turn]:
    """Speakers and what they say, in turn."""
    return [
        Turn("assistant" if speaker == "Assistant" else "user", said.strip())
        for speaker, said in zip(parts[::2], parts[1::2], strict=True)
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
    turns = [Turn(role, said) for role, said in messages]  # pyright: ignore[reportArgumentType]
    return Dialogue(turns, system)


def read_message(message: Mapping[str, Any], key: str) -> tuple[str, str]:
    """Who speaks and what, of {"role", "content"} or {"from", "value"}.

    Raises:
        RowError: the speaker is unknown, or what is said is no text or not all of it.
    """
    is_sharegpt = message.get("role") is None and message.get("from") is not None
    speaker, field = ("from", "value") if is_sharegpt else ("role", "content")
    role = _named_text(message, key, speaker)
    if role not in _ROLES:
        known = ", ".join(sorted(_ROLES))
        raise RowError(f"{key}: {speaker}: expected one of {known}, got {short(role)}")
    call = next((name for name in _CALLS if is_filled(message.get(name))), None)
    if call is not None:
        raise RowError(f"{key}: only text can be trained on, got a message with {call}")
    said = message.get(field)
    if not isinstance(said, list):
        return _ROLES[role], _named_text(message, key, field)
    return _ROLES[role], "".join(_part(part, key) for part in items(message, field))


def _named_text(message: Mapping[str, Any], key: str, field: str) -> str:
    """The text of a message's field, whose errors name the messages, too."""
    name = f"{key}: {field}"
    return text({name: message.get(field)}, name)


def _part(part: Mapping[str, Any], key: str) -> str:
    if part.get("type") != "text":
        raise RowError(
            f"{key}: only text can be trained on, got a part of type {part.get('type')!r}"
        )
    return text(part, "text")


def unread_keys(row: Mapping[str, Any], keys: Iterable[str]) -> set[str]:
    """What nobody reads of the messages under these keys, such as `messages.name`."""
    return {
        f"{key}.{name}"
        for key in keys
        for message in (row[key] if isinstance(row.get(key), list) else [row.get(key)])
        if isinstance(message, dict)
        for name, value in message.items()
        if is_filled(value) and name not in _READ
    }


def same_turns(one: Sequence[Turn], other: Sequence[Turn]) -> bool:
    """Whether two dialogues say the same, but for blanks around it."""
    return [(turn.role, turn.text.strip()) for turn in one] == [
        (turn.role, turn.text.strip()) for turn in other
    ]


def holds_turns(turns: Sequence[Turn], part: Sequence[Turn]) -> bool:
    """Whether a part of what was said is this, turn by turn."""
    starts = range(len(turns) - len(part) + 1)
    return any(same_turns(turns[start : start + len(part)], part) for start in starts)
