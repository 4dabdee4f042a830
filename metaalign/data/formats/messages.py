"""Reads lists of messages.

    messages          [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    parts             [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    LLaMA-Factory v1  [{"role": "user", "content": [{"type": "text", "value": "Hi"}]}]
    ShareGPT          [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]

The other modules of this room read where in a row the messages are.
"""

import itertools
from collections.abc import Container, Mapping, Sequence
from typing import Any, NamedTuple

from metaalign.data.formats.exchanges import EXCHANGE_KEYS
from metaalign.data.formats.fields import is_filled, items, short, text
from metaalign.data.formats.loss_flags import LOSS_FLAGS
from metaalign.errors import RowError
from metaalign.examples import Turn

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "bot": "assistant",
    "system": "system",
    "developer": "system",
}
"""The role of a turn for each role of a message that is read."""

_PRINTED = ("'role':", "'content':", '"role":')
"""Marks of a list of messages that was printed as text. Valid JSON was parsed before."""
CONVERSATIONS = ("messages", "conversation")
"""Keys of a conversation; ShareGPT's key is `conversations`."""

CALLS = ("tool_calls", "function_call")
"""Keys of a message that calls a tool."""

_READ = frozenset({"role", "content", "from", "value", "messages", *LOSS_FLAGS, *CALLS})
"""Keys that are read of a message, and of the object in OpenAI's `input`."""


class Dialogue(NamedTuple):
    """Turns and the system message before them.

    Attributes:
        is_templated: Whether they were split from a text of another chat template.
    """

    turns: list[Turn]
    system_info: str = ""
    is_templated: bool = False


def one_system(*said: str) -> str:
    """The one System Info among several texts of a row.

    Raises:
        RowError: two texts differ, and one would be dropped.
    """
    given = {each.strip(): each for each in said if each.strip()}
    if len(given) > 1:
        raise RowError(f"two system texts that differ: {' and '.join(map(short, given))}")
    return next(iter(given.values()), "")


def words(row: Mapping[str, Any], key: str) -> str:
    """The text of a field that may also hold messages.

    Raises:
        RowError: the field is not text, or is a printed list of messages.
    """
    said = text(row, key)
    if said.startswith("[{") and any(mark in said for mark in _PRINTED):
        raise RowError(
            f"{key}: a list of messages that was printed as text; export the rows as JSON lines or "
            "Parquet, which keep lists"
        )
    return said


def read_messages(row: Mapping[str, Any], key: str) -> Dialogue:
    """The turns of a list of messages, which may begin with a system message.

    Raises:
        RowError: the field is not a list of messages with known roles.
    """
    messages = [read_message(message, key) for message in items(row, key)]
    system = messages.pop(0)[1] if messages and messages[0][0] == "system" else ""
    if any(role == "system" for role, _ in messages):
        raise RowError(f"{key}: a system message may only stand first")
    turns = [Turn(role, said) for role, said in messages]  # pyright: ignore[reportArgumentType]
    return Dialogue(turns, system)


def read_message(message: Mapping[str, Any], key: str) -> tuple[str, str]:
    """The role and the text of a message {"role", "content"} or {"from", "value"}.

    Raises:
        RowError: the role is unknown, or the content has something other than text.
    """
    is_sharegpt = message.get("role") is None and message.get("from") is not None
    speaker, field = ("from", "value") if is_sharegpt else ("role", "content")
    role = _named_text(message, key, speaker)
    if role not in ROLES:
        known = ", ".join(sorted(ROLES))
        raise RowError(f"{key}: {speaker}: expected one of {known}, got {short(role)}")
    call = next((name for name in CALLS if is_filled(message.get(name))), None)
    if call is not None:
        raise RowError(f"{key}: only text can be trained on, got a message with {call}")
    said = message.get(field)
    if not isinstance(said, list):
        return ROLES[role], _named_text(message, key, field)
    return ROLES[role], "".join(_part(part, key) for part in items(message, field))


def _named_text(message: Mapping[str, Any], key: str, field: str) -> str:
    """The text of a message's field. Errors also name the key of the messages."""
    name = f"{key}: {field}"
    return text({name: message.get(field)}, name)


def _part(part: Mapping[str, Any], key: str) -> str:
    if part.get("type") != "text":
        raise RowError(
            f"{key}: only text can be trained on, got a part of type {part.get('type')!r}"
        )
    named = {name: part.get(name) for name in ("text", "value")}
    if named["text"] is None and named["value"] is None:
        found = ", ".join(map(str, part)) or "nothing"
        raise RowError(
            f"{key}: content: a part of type text has no text and no value, it has {found}"
        )
    name = "value" if named["text"] is None else "text"
    return text({f"{key}: content: {name}": named[name]}, f"{key}: content: {name}")


def unread_keys(row: Mapping[str, Any], keys: Container[str]) -> set[str]:
    """Names of the unread keys of messages under these keys, such as `messages.name`."""
    return {
        f"{key}.{name}"
        for key, value in row.items()
        if isinstance(value, list | dict) and key in keys
        for message in (value if isinstance(value, list) else [value])
        if isinstance(message, dict) and not _READ.issuperset(message)
        for name in _unread(message)
    }


def _unread(message: Mapping[str, Any]) -> list[str]:
    is_exchange = "role" not in message and "from" not in message
    read = _READ | EXCHANGE_KEYS if is_exchange else _READ
    return [name for name, value in message.items() if is_filled(value) and name not in read]


def refuse_repeats(turns: Sequence[Turn]) -> None:
    """Check that no two consecutive turns have the same role.

    Raises:
        RowError: two consecutive turns have the same role.
    """
    for first, second in itertools.pairwise(turns):
        if first.role == second.role:
            raise RowError(f"two {first.role} turns follow each other")


def same_turns(one: Sequence[Turn], other: Sequence[Turn]) -> bool:
    """Whether two dialogues have the same turns, up to blanks around their texts."""
    return [(turn.role, turn.text.strip()) for turn in one] == [
        (turn.role, turn.text.strip()) for turn in other
    ]


def holds_turns(turns: Sequence[Turn], part: Sequence[Turn]) -> bool:
    """Whether `turns` contains `part` as consecutive turns."""
    starts = range(len(turns) - len(part) + 1)
    return any(same_turns(turns[start : start + len(part)], part) for start in starts)
