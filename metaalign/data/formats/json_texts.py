"""Lists that stand in a row as JSON text, as CSV files and columns of text hold them.

{"prompt": "Hi", "chosen": "[{\\"role\\": \\"assistant\\", \\"content\\": \\"Hello!\\"}]", ...}
"""

import json
from collections.abc import Container, Mapping
from typing import Any

_ROLES = ("role", "from")


def opened(row: Mapping[str, Any], lists: Container[str]) -> Mapping[str, Any]:
    """The row with a list in place of every text that is one in JSON; the row itself has none.

    A text is taken for a list where all of its items are messages, or where it stands under a key
    that only holds lists.

    Args:
        lists: Keys that only hold lists.
    """
    found = {
        key: value
        for key, text in row.items()
        if isinstance(text, str) and (value := _list(text, is_list=key in lists)) is not None
    }
    return {**row, **found} if found else row


def _list(text: str, *, is_list: bool) -> list[Any] | dict[str, Any] | None:
    """The list of a text; also the one message that stands without a list."""
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
    """None where a key stands twice, since which of the values counts is a guess."""
    value = dict(pairs)
    return value if len(value) == len(pairs) else None


def _is_message(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    return {"role", "content"} <= value.keys() or {"from", "value"} <= value.keys()
