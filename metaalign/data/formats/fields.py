"""A row's fields by name and type: what is missing or of another type is a RowError."""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from metaalign.errors import RowError
from metaalign.examples import is_utf8

_SHOWN_CHARACTERS = 60


def text(row: Mapping[str, Any], key: str, default: str | None = None) -> str:
    """The text of a field; `default` where it is missing or null.

    Raises:
        RowError: it is no valid text, or is missing and there is no default.
    """
    value = row.get(key)
    if value is None and default is not None:
        return default
    if value is None:
        raise RowError(f"{key} is missing")
    if not isinstance(value, str):
        raise RowError(f"{key}: expected text, got {short(value)}")
    if not is_utf8(value):
        raise RowError(f"{key}: text is not valid UTF-8")
    return value


def number(row: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """The finite number of a field; `default` where it is missing or null.

    Raises:
        RowError: it is none.
    """
    value = default if row.get(key) is None else row[key]
    found = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not abs(found) <= sys.float_info.max:  # not a number fails this too
        raise RowError(f"{key}: expected a finite number, got {short(value)}")
    return float(found)


def flag(row: Mapping[str, Any], key: str) -> bool | None:
    """True, false, or None where nobody said.

    Raises:
        RowError: it is something else.
    """
    value = row.get(key)
    if value is not None and not isinstance(value, bool):
        raise RowError(f"{key} must be true, false or null, got {short(value)}")
    return value


def label(row: Mapping[str, Any]) -> bool | None:
    """Whether an answer is good: `label`, or LLaMA-Factory's `kto_tag`; None where nobody said.

    Raises:
        RowError: it is neither true nor false, nor 1 or 0, nor one of these as text.
    """
    key = "kto_tag" if row.get("label") is None else "label"
    value = row.get(key)
    known = {"true": True, "1": True, "false": False, "0": False}
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
    """An object, or the list of {name, value} that `Example.to_row` writes for one.

    Raises:
        RowError: it is neither.
    """
    value = row.get(key)
    if value is None:
        return {}
    if isinstance(value, list) and all(
        isinstance(each, dict) and each.keys() == {name, "value"} for each in value
    ):
        value = {text(each, name): each["value"] for each in value}
    if not isinstance(value, dict):
        raise RowError(f"{key}: expected an object, got {short(value)}")
    if not all(map(is_utf8, value)):
        raise RowError(f"{key}: text is not valid UTF-8")
    return value


def short(value: Any) -> str:
    """A value as a message shows it."""
    shown = repr(value)
    return shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[: _SHOWN_CHARACTERS - 3]}..."
