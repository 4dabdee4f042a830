"""A row's fields by name and type: what is missing or of another type is a RowError."""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from metaalign.errors import RowError
from metaalign.examples import is_utf8

_SHOWN_CHARACTERS = 60
_LARGEST = sys.float_info.max


def text(row: Mapping[str, Any], key: str, default: str | None = None) -> str:
    """The text of a field; `default` where it is missing or null.

    Raises:
        RowError: it is no valid text, or is missing and there is no default.
    """
    value = row.get(key)
    if isinstance(value, str) and value.isascii():
        return value
    return default if value is None and default is not None else as_text(value, key)


def as_text(value: Any, name: str) -> str:
    """A value as text.

    Raises:
        RowError: it is none, or no valid one.
    """
    if isinstance(value, str) and (value.isascii() or is_utf8(value)):
        return value
    if value is None:
        raise RowError(f"{name} is missing")
    if not isinstance(value, str):
        raise RowError(f"{name}: expected text, got {short(value)}")
    raise RowError(f"{name}: text is not valid UTF-8")


def is_filled(value: Any) -> bool:
    """Whether a field holds something: no null, no blank text, no empty list or object."""
    return bool(value.strip()) if isinstance(value, str) else value not in (None, [], (), {})


def one_of(row: Mapping[str, Any], keys: Sequence[str], what: str, *, equal: bool = False) -> str:
    """The key of several under which a row holds something, or where it says that it has nothing.

    Args:
        what: Stands there, for the error.
        equal: Whether two that hold the same are one.

    Raises:
        RowError: two of them hold something, and either would be dropped.
    """
    filled = [key for key in keys if is_filled(row.get(key))]
    if len(filled) > 1 and not (equal and all(row[key] == row[filled[0]] for key in filled)):
        raise RowError(f"{filled[0]} and {filled[1]} both hold {what}; keep one of them")
    given = [key for key in keys if row.get(key) is not None]
    there = [key for key in keys if key in row]
    return [*filled, *given, *there, *keys][0]


def number(row: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """The finite number of a field, which may be digits; `default` where it is missing or null.

    Raises:
        RowError: it is none.
    """
    value = row.get(key)
    return as_number(default if value is None else value, key)


def as_number(value: Any, name: str) -> float:
    """A value as a finite number, which may be digits.

    Raises:
        RowError: it is none.
    """
    if type(value) is float and -_LARGEST <= value <= _LARGEST:
        return value
    found = _number(value)
    if not abs(found) <= _LARGEST:  # not a number fails this too
        raise RowError(f"{name}: expected a finite number, got {short(value)}")
    return float(found)


def _number(value: Any) -> float:
    try:
        found = float(value) if isinstance(value, str) else value
    except ValueError:
        return math.nan
    return found if isinstance(found, int | float) and not isinstance(found, bool) else math.nan


def flag(row: Mapping[str, Any], key: str) -> bool | None:
    """True, false, or None where nobody said.

    Raises:
        RowError: it is something else.
    """
    value = row.get(key)
    if value is not None and not isinstance(value, bool):
        raise RowError(f"{key} must be true, false or null, got {short(value)}")
    return value


LABELS = ("label", "kto_tag", "is_safe")
"""Where it stands whether an answer is good; the last two are LLaMA-Factory's and BeaverTails'."""


def label(row: Mapping[str, Any]) -> bool | None:
    """Whether an answer is good, as LABELS says; None where nobody said.

    Raises:
        RowError: it is neither true nor false, nor 1 or 0, nor one of these as text; or two labels
            differ.
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
        of: The type that each must have.
        default: Where it is missing or null; None refuses that.

    Raises:
        RowError: it is no list of those.
    """
    values = default if row.get(key) is None else row[key]
    if not isinstance(values, list | tuple) or not all(isinstance(each, of) for each in values):
        expected = {list: "lists", str: "texts"}.get(of, "objects")
        raise RowError(f"{key}: expected a list of {expected}, got {short(values)}")
    return values


def mapping(row: Mapping[str, Any], key: str, *, name: str) -> Mapping[str, Any]:
    """An object, or a list of {name, value} in its place, as Arrow tables hold one.

    Raises:
        RowError: it is neither.
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
    """A value as a message shows it."""
    shown = repr(value)
    return shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[: _SHOWN_CHARACTERS - 3]}..."
