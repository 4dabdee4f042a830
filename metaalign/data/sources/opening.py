"""Files opened as bytes of UTF-8: gzip is unpacked, UTF-16 and UTF-32 are recoded.

Knows no kind of file.
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
"""What reading a damaged file raises."""

_GZIP_MAGIC = b"\x1f\x8b"

_MARKS = {
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
"""Byte order marks, the longer ones first, and what they mark."""

_MARK_BYTES = 4


def _encoding_of(head: bytes) -> str | None:
    """What a file is written in by its byte order mark; None of UTF-8 and of what has no mark."""
    return next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)


def looks_wide(head: bytes) -> bool:
    """Whether the first characters take two bytes or four each, with no mark that would say how."""
    return len(head) >= _MARK_BYTES and head[:_MARK_BYTES].count(0) in (2, 3) and 0 in head[:2]


@contextmanager
def opened(file: Folder) -> Iterator[io.BufferedIOBase]:
    """The file's bytes from their beginning, unpacked where they are gzip, as UTF-8.

    Raises:
        DataError: it cannot be read.
        StorageError: object storage could not be asked.
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
    """Whether a stream gives other bytes than its file holds: then no range can be read alone."""
    return isinstance(stream, gzip.GzipFile) or isinstance(getattr(stream, "raw", None), _Recoded)


def read_bytes(stream: Any, file: Folder, size: int = -1) -> bytes:
    """The next bytes, at most so many; all that are left where no size is given.

    Raises:
        DataError: the file is damaged.
    """
    try:
        return stream.read(size)
    except UNREADABLE as error:
        refuse_file(file, error)


def refuse_file(file: Folder, error: Exception) -> NoReturn:
    """Say that a file is damaged.

    Raises:
        DataError: always.
    """
    raise DataError(f"{file}: the file cannot be read to its end: {error}") from error


class _Recoded(io.RawIOBase):
    """A file's text in UTF-8, read from its beginning. Lone surrogates stay what they are."""

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
        """Back to the beginning; nothing else."""
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
