"""Converts rows of Arrow tables to values of JSON: texts, numbers, lists and objects.

Decimals become numbers, maps become objects with text keys, and binary values become texts. Dates,
times and UUIDs become their usual texts, and NaN becomes null. Reads no file.
"""

import datetime
import math
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.types as kinds

UNREADABLE = (ValueError, OverflowError, KeyError, pa.ArrowException)
"""Errors of text that is not UTF-8, a date in the year 9,000,000, or a map with a repeated key."""

_PLAIN = (
    kinds.is_boolean,
    kinds.is_integer,
    kinds.is_string,
    kinds.is_large_string,
    kinds.is_string_view,
    kinds.is_null,
)


def plain_rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | Exception]:
    """Each row of a batch, or the error if one of its values cannot be read."""
    other = [field.name for field in batch.schema if not _is_plain(field.type)]
    for place in range(batch.num_rows):
        try:
            row = batch.slice(place, 1).to_pylist(maps_as_pydicts="strict")[0]
            for name in other:
                row[name] = _plain(row[name])
        except UNREADABLE as error:
            yield error
        else:
            yield row


def _is_plain(kind: pa.DataType) -> bool:
    """Whether values of this type need no conversion."""
    if kinds.is_dictionary(kind) or kinds.is_run_end_encoded(kind):
        return _is_plain(kind.value_type)  # pyright: ignore[reportAttributeAccessIssue]
    if kinds.is_map(kind) or isinstance(kind, pa.BaseExtensionType):
        return False
    inner = [kind.field(place).type for place in range(kind.num_fields)]  # pyright: ignore
    return all(map(_is_plain, inner)) if inner else any(check(kind) for check in _PLAIN)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {str(_plain(key)): _plain(held) for key, held in value.items()}
    if isinstance(value, Decimal):
        return float(value) if value.is_finite() else None
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, datetime.date | datetime.time):  # a datetime is a date
        return value.isoformat()
    return value if value is None or isinstance(value, str | int) else str(value)
