"""Opens files as bytes of UTF-8. Unpacks gzip and recodes UTF-16 and UTF-32.

Independent of the kinds of files.
"""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from metaalign.errors import DataError, MetaAlignError
from metaalign.folders import Folder, open_to_read

UNREADABLE = (OSError, EOFError, zlib.error, UnicodeError)
"""Errors that reading a damaged file raises."""

_GZIP_MAGIC = b"\x1f\x8b"

_MARKS = {
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
"""Byte order marks and their encodings, the longer marks first."""

_MARK_BYTES = 4


def _encoding_of(head: bytes) -> str | None:
    """The encoding by the byte order mark; None for UTF-8 and for files without a mark."""
    return next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)


def looks_wide(head: bytes) -> bool:
    """Whether the first bytes look like UTF-16 or UTF-32 without a byte order mark."""
    return len(head) >= _MARK_BYTES and head[:_MARK_BYTES].count(0) in (2, 3) and 0 in head[:2]


@contextmanager
def opened(file: Folder) -> Iterator[io.BufferedIOBase]:
    """Open a file as a stream of its content in UTF-8, unpacked if it is gzip.

    Raises:
        DataError: the file cannot be read.
        StorageError: object storage cannot be read.
    """
    try:
        with open_to_read(file) as raw:
            packed = raw.read(2) == _GZIP_MAGIC
            raw.seek(0)
            lines = raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw)
            stream: Any = gzip.GzipFile(fileobj=raw) if packed else lines
            encoding = _encoding_of(read_bytes(stream, file, _MARK_BYTES))
            stream.seek(0)
            yield io.BufferedReader(_Recoded(stream, encoding)) if encoding else stream
    except MetaAlignError:
        raise
    except OSError as error:
        raise DataError(f"{file}: the file cannot be read: {error.strerror or error}") from error


def is_unpacked(stream: Any) -> bool:
    """Whether a stream's bytes differ from its file's, so that no range can be read alone."""
    return isinstance(stream, gzip.GzipFile) or isinstance(getattr(stream, "raw", None), _Recoded)


def read_bytes(stream: Any, file: Folder, size: int = -1) -> bytes:
    """At most `size` of the next bytes; all remaining bytes if no size is given.

    Raises:
        DataError: the file is damaged.
    """
    try:
        return stream.read(size)
    except UNREADABLE as error:
        refuse_file(file, error)


def refuse_file(file: Folder, error: Exception) -> NoReturn:
    """Raise the error for a damaged file.

    Raises:
        DataError: always.
    """
    raise DataError(f"{file}: the file cannot be read to its end: {error}") from error


class _Recoded(io.RawIOBase):
    """Recodes a file's text as UTF-8, from its beginning. Lone surrogates stay unchanged."""

    def __init__(self, raw: Any, encoding: str) -> None:
        super().__init__()
        self._raw, self._encoding = raw, encoding
        self._begin()

    def _begin(self) -> None:
        self._raw.seek(0)
        self._text = io.TextIOWrapper(
            self._raw, encoding=self._encoding, errors="surrogatepass", newline=""
        )
        self._rest = b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go back to the beginning. Other offsets are not supported."""
        if (offset, whence) != (0, io.SEEK_SET):
            raise io.UnsupportedOperation("a file of another encoding is read from its beginning")
        self._text.detach()
        self._begin()
        return 0

    def readinto(self, buffer: Any, /) -> int:
        if not self._rest:
            self._rest = self._text.read(len(buffer)).encode("utf-8", "surrogatepass")
        taken = self._rest[: len(buffer)]
        buffer[: len(taken)] = taken
        self._rest = self._rest[len(taken) :]
        return len(taken)
