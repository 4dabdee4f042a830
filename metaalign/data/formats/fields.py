"""Reads a row's fields by name and type. A missing field or another type is a RowError."""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from metaalign.errors import RowError
from metaalign.examples import is_utf8

_SHOWN_CHARACTERS = 60
_LARGEST = sys.float_info.max


def text(row: Mapping[str, Any], key: str, default: str | None = None) -> str:
    """The text of a field; `default` if it is missing or null.

    Raises:
        RowError: the field is not valid text, or is missing and has no default.
    """
    value = row.get(key)
    if isinstance(value, str) and value.isascii():
        return value
    return default if value is None and default is not None else as_text(value, key)


def as_text(value: Any, name: str) -> str:
    """Check that a value is text, and return it.

    Raises:
        RowError: the value is not text, or not valid UTF-8.
    """
    if isinstance(value, str) and (value.isascii() or is_utf8(value)):
        return value
    if value is None:
        raise RowError(f"{name} is missing")
    if not isinstance(value, str):
        raise RowError(f"{name}: expected text, got {short(value)}")
    raise RowError(f"{name}: text is not valid UTF-8")


def is_filled(value: Any) -> bool:
    """Whether a field has a value: not null, blank text, or an empty list or object."""
    return bool(value.strip()) if isinstance(value, str) else value not in (None, [], (), {})


def one_of(row: Mapping[str, Any], keys: Sequence[str], what: str, *, equal: bool = False) -> str:
    """The one of several keys that has a value; else one that is null, or the first.

    Args:
        what: What the keys hold, for the error.
        equal: Whether several keys may have the same value.

    Raises:
        RowError: two keys have values, and one would be dropped.
    """
    filled = [key for key in keys if is_filled(row.get(key))]
    if len(filled) > 1 and not (equal and all(row[key] == row[filled[0]] for key in filled)):
        raise RowError(f"{filled[0]} and {filled[1]} both hold {what}; keep one of them")
    given = [key for key in keys if row.get(key) is not None]
    there = [key for key in keys if key in row]
    return [*filled, *given, *there, *keys][0]


def number(row: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """The finite number of a field, also as text; `default` if it is missing or null.

    Raises:
        RowError: the field is not a finite number.
    """
    value = row.get(key)
    return as_number(default if value is None else value, key)


def as_number(value: Any, name: str) -> float:
    """Convert a number, or its text, to a finite float.

    Raises:
        RowError: the value is not a finite number.
    """
    if type(value) is float and -_LARGEST <= value <= _LARGEST:
        return value
    found = _number(value)
    if not abs(found) <= _LARGEST:  # NaN fails this check too
        raise RowError(f"{name}: expected a finite number, got {short(value)}")
    return float(found)


def _number(value: Any) -> float:
    try:
        found = float(value) if isinstance(value, str) else value
    except ValueError:
        return math.nan
    return found if isinstance(found, int | float) and not isinstance(found, bool) else math.nan


def flag(row: Mapping[str, Any], key: str) -> bool | None:
    """The boolean of a field; None if it is missing or null.

    Raises:
        RowError: the field is of another type.
    """
    value = row.get(key)
    if value is not None and not isinstance(value, bool):
        raise RowError(f"{key} must be true, false or null, got {short(value)}")
    return value


LABELS = ("label", "kto_tag", "is_safe")
"""Keys of a good or bad label. The last two are LLaMA-Factory's and BeaverTails'."""


def label(row: Mapping[str, Any]) -> bool | None:
    """Whether an answer is good, from the keys LABELS; None if there is no label.

    Raises:
        RowError: the label is not true, false, 1, 0 or one of these as text, or two labels differ.
    """
    key = next((key for key in LABELS if row.get(key) is not None), "")
    if not key:
        return None
    one_of(row, LABELS, "a label", equal=True)
    value = row.get(key)
    known = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
    if value is None or isinstance(value, bool):
        return value
    if str(value).lower() not in known:
        raise RowError(f"{key} must be true, false or null, got {short(value)}")
    return known[str(value).lower()]


def items(
    row: Mapping[str, Any], key: str, *, of: type = dict, default: Sequence[Any] | None = None
) -> Sequence[Any]:
    """The list of a field.

    Args:
        of: The type that each item must have.
        default: The value if the field is missing or null. None makes that an error.

    Raises:
        RowError: the field is not a list of such items.
    """
    values = default if row.get(key) is None else row[key]
    if not isinstance(values, list | tuple) or not all(isinstance(each, of) for each in values):
        expected = {list: "lists", str: "texts"}.get(of, "objects")
        raise RowError(f"{key}: expected a list of {expected}, got {short(values)}")
    return values


def mapping(row: Mapping[str, Any], key: str, *, name: str) -> Mapping[str, Any]:
    """The object of a field, also as a list of {name, value}, the form of Arrow tables.

    Raises:
        RowError: the field is neither.
    """
    value = row.get(key)
    if value is None:
        return {}
    named = _named(value, name) if isinstance(value, list) else None
    if named is not None:
        return named
    if not isinstance(value, dict):
        raise RowError(f"{key}: expected an object, got {short(value)}")
    if not all(map(is_utf8, value)):
        raise RowError(f"{key}: text is not valid UTF-8")
    return value


def _named(values: Sequence[Any], name: str) -> dict[str, Any] | None:
    found = {}
    for each in values:
        if not (isinstance(each, dict) and len(each) == 2 and name in each and "value" in each):
            return None
        found[as_text(each[name], name)] = each["value"]
    return found


def short(value: Any) -> str:
    """A value's repr for messages, shortened to 60 characters."""
    shown = repr(value)
    return shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[: _SHOWN_CHARACTERS - 3]}..."
