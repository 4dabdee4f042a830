"""Parses lists that a row has as JSON text, as in CSV files and text columns.

{"prompt": "Hi", "chosen": "[{\\"role\\": \\"assistant\\", \\"content\\": \\"Hello!\\"}]", ...}
"""

import json
from collections.abc import Container, Mapping
from typing import Any

_ROLES = ("role", "from")


def opened(row: Mapping[str, Any], lists: Container[str]) -> Mapping[str, Any]:
    """The row with parsed lists in place of their JSON texts; the same object if there are none.

    A text is parsed if all items of its list are messages, or if its key always holds a list.

    Args:
        lists: Keys that always hold lists.
    """
    found = {
        key: value
        for key, text in row.items()
        if isinstance(text, str) and (value := _list(text, is_list=key in lists)) is not None
    }
    return {**row, **found} if found else row


def _list(text: str, *, is_list: bool) -> list[Any] | dict[str, Any] | None:
    """The list in a text, or a single message without a list; None for other texts."""
    if not text.startswith(("[", "{")):
        return None
    if not is_list and not any(f'"{role}"' in text for role in _ROLES):
        return None
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, list) and (is_list or (value and all(map(_is_message, value)))):
        return value
    return value if _is_message(value) else None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | None:
    """None if a key is repeated, since the object is ambiguous."""
    value = dict(pairs)
    return value if len(value) == len(pairs) else None


def _is_message(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    return {"role", "content"} <= value.keys() or {"from", "value"} <= value.keys()
