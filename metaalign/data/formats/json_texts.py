"""Parses lists that a row has as JSON text, as in CSV files and text columns.

{"prompt": "Hi", "chosen": "[{\\"role\\": \\"assistant\\", \\"content\\": \\"Hello!\\"}]", ...}
"""

import json
from collections.abc import Container, Mapping
from typing import Any

from metaalign.data.formats.fields import is_filled
from metaalign.data.formats.loss_flags import LOSS_FLAGS
from metaalign.data.formats.messages import CALLS, ROLES

_SPEAKERS = ("role", "from")
_KNOWN = frozenset(
    {*ROLES, "tool", "function", "function_call", "function_response", "tool_call", "tool_response"}
    | {"observation", "ipython", "environment"}
)
"""Roles of messages, including those of tools, which are refused and must not become text."""

_LONE_KEYS = frozenset({"role", "content", "from", "value", "name", *LOSS_FLAGS, *CALLS})
"""Keys that a message without a list may have. Another object is an answer in JSON."""


def opened(
    row: Mapping[str, Any], lists: Container[str], *, asked: Container[str] = ()
) -> Mapping[str, Any]:
    """The row with parsed messages in place of their JSON texts; the same object if there are none.

    A text is parsed if it is a list of messages, one message of the assistant, or any list under a
    key that always holds one.

    Args:
        lists: Keys that always hold lists.
        asked: Keys of what the user says, where an object in JSON is the user's text.
    """
    found = {
        key: value
        for key, text in row.items()
        if isinstance(text, str)
        and text.startswith(("[", "{"))
        and (value := _parsed(text, is_list=key in lists, may_be_lone=key not in asked)) is not None
    }
    return {**row, **found} if found else row


def _parsed(text: str, *, is_list: bool, may_be_lone: bool) -> list[Any] | dict[str, Any] | None:
    """The list in a text, or a single message without a list; None for other texts."""
    if not is_list and not any(f'"{speaker}"' in text for speaker in _SPEAKERS):
        return None
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, list):
        return value if is_list or _are_messages(value) else None
    return value if may_be_lone and _is_answer(value) else None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | None:
    """None if a key is repeated, since the object is ambiguous."""
    value = dict(pairs)
    return value if len(value) == len(pairs) else None


def _are_messages(values: list[Any]) -> bool:
    """Whether each value has the form of a message, and one of them has a known role."""
    return all(map(_speaker, values)) and any(_speaker(each) in _KNOWN for each in values)


def _is_answer(value: Any) -> bool:
    """Whether a value is a message of the assistant and nothing more."""
    if ROLES.get(_speaker(value)) != "assistant":
        return False
    return all(key in _LONE_KEYS or not is_filled(each) for key, each in value.items())


def _speaker(value: Any) -> str:
    """The role of a message, known or not; empty for a value that is no message."""
    if not isinstance(value, dict):
        return ""
    is_sharegpt = value.get("role") is None and value.get("from") is not None
    speaker, field = ("from", "value") if is_sharegpt else ("role", "content")
    said = value.get(field)
    is_said = isinstance(said, str | list) or any(is_filled(value.get(call)) for call in CALLS)
    role = value.get(speaker)
    return role if is_said and isinstance(role, str) else ""
