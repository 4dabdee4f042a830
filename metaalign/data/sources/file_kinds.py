"""Detects the kind of a file from its first bytes: JSON lines, a JSON array, CSV or Parquet.

Reads no file itself.
"""

import json
from collections.abc import Sequence
from typing import Literal

from metaalign.data.sources.csv_tables import is_header
from metaalign.data.sources.opening import looks_wide
from metaalign.errors import DataError

Kind = Literal["lines", "array", "object", "csv", "parquet"]

HEAD_BYTES = 1 << 16
"""Number of first bytes that are examined."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_PARQUET_MAGIC = b"PAR1"
_OTHER_MAGIC = (b"ARROW1", b"PK\x03\x04", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ", b"Obj\x01")
_WANTED = "expected JSON lines, one JSON array, CSV or Parquet, plain or gzip"
_LINES_LOOKED_AT = 20
_LONGEST_WORD = 16
"""A parse error this close to the end of a cut-off text may be due to a word cut in two."""


def kind_of(head: bytes, name: str) -> Kind:
    """The kind of a file with these first bytes: HEAD_BYTES of them, or all if it is shorter.

    An `object` is a JSON object that spans several lines.

    Args:
        name: Name of the file, for the error.

    Raises:
        DataError: the file is of no known kind.
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
    """Whether the file begins with a JSON object that spans several lines.

    Args:
        whole: Whether `begun` is the whole file.
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
    """Whether most of these lines begin as JSON, so that only the first line is broken."""
    looked_at = [line.strip() for line in lines if line.strip()][:_LINES_LOOKED_AT]
    return sum(line.startswith(b"{") for line in looked_at) > len(looked_at) / 2
