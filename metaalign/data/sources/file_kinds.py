"""Which kind of file this is, told by its first bytes: JSON lines, an array, CSV or Parquet.

Reads no file.
"""

import json
from collections.abc import Sequence
from typing import Literal

from metaalign.data.sources.csv_tables import is_header
from metaalign.data.sources.opening import looks_wide
from metaalign.errors import DataError

Kind = Literal["lines", "array", "object", "csv", "parquet"]

HEAD_BYTES = 1 << 16
"""Bytes that are looked at."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_PARQUET_MAGIC = b"PAR1"
_OTHER_MAGIC = (b"ARROW1", b"PK\x03\x04", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ", b"Obj\x01")
_WANTED = "expected JSON lines, one JSON array, CSV or Parquet, plain or gzip"
_LINES_LOOKED_AT = 20
_LONGEST_WORD = 16
"""Characters before the end of a text that is cut off, in which a word may be."""


def kind_of(head: bytes, name: str) -> Kind:
    """The kind of a file with these first bytes, HEAD_BYTES of them where it has as many.

    An `object` is a JSON object that goes over several lines.

    Args:
        name: Of the file, for the error.

    Raises:
        DataError: it is of none.
    """
    begun = head.removeprefix(BYTE_ORDER_MARK).lstrip()
    if not begun:
        raise DataError(f"{name}: the file is empty; {_WANTED}")
    if begun.startswith(_OTHER_MAGIC):
        raise DataError(f"{name}: the file begins with {begun[:6]!r}; {_WANTED}")
    if looks_wide(head):
        raise DataError(
            f"{name}: the file looks like UTF-16 without a byte order mark; save it as UTF-8"
        )
    if begun.startswith(_PARQUET_MAGIC):
        return "parquet"
    if begun.startswith(b"["):
        return "array"
    if _is_spread(begun, whole=len(head) < HEAD_BYTES):
        return "object"
    first, *lines = begun.split(b"\n")
    if not begun.startswith(b"{") and is_header(first) and not _mostly_json(lines):
        return "csv"
    return "lines"


def _is_spread(begun: bytes, *, whole: bool) -> bool:
    """Whether the file begins with a JSON object that goes over several lines.

    Args:
        whole: Whether these are all of its bytes.
    """
    first, newline, _ = begun.partition(b"\n")
    if not newline or not first.startswith(b"{"):
        return False
    text, length = begun.decode("utf-8", "replace"), len(first.decode("utf-8", "replace"))
    try:
        return json.JSONDecoder().raw_decode(text)[1] > length
    except json.JSONDecodeError as error:
        cut_off = error.pos >= len(text) - _LONGEST_WORD or error.msg.startswith("Unterminated")
        return not whole and cut_off and error.pos > length
    except RecursionError:
        return False


def _mostly_json(lines: Sequence[bytes]) -> bool:
    """Whether the first lines are JSON, as below a first line that is broken."""
    looked_at = [line.strip() for line in lines if line.strip()][:_LINES_LOOKED_AT]
    return sum(line.startswith(b"{") for line in looked_at) > len(looked_at) / 2
