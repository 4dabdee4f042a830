"""Users' files -> raw records. JSON lines or one JSON array, plain or gzip, told by content.

Knows no shape of record; `formats.py` does.
"""

import glob
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from metaalign.errors import DataError, RowError
from metaalign.examples import HELD_OUT, TRAIN, Example

PACKAGE = Path(__file__).parents[1]
"""The folder of metaalign's own source."""

_CHUNK_BYTES = 1 << 20
_GZIP_MAGIC = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_QUARANTINED_CHARACTERS = 2_000
_WANTED = "expected JSON lines or one JSON array, plain or gzip"


@dataclass(frozen=True)
class Record:
    """One source row as it stands in the file.

    Attributes:
        row: Its line in a file of JSON lines, its place in an array; from 0.
        value: What it parsed to, or None where it is not JSON.
        problem: Why it did not parse, or an empty string.
        text: The line as it stands; empty in an array.
    """

    row: int
    value: Any
    problem: str = ""
    text: str = ""

    def object(self) -> Mapping[str, Any]:
        """The record as keys and values.

        Raises:
            RowError: it is none.
        """
        if self.problem:
            raise RowError(self.problem)
        if not isinstance(self.value, Mapping):
            raise RowError(f"expected a JSON object, got {type(self.value).__name__}")
        return self.value


@dataclass(frozen=True)
class Reading:
    """How a file's rows become examples."""

    system_info: str = ""
    user_info: str | None = None
    held_out_ratio: float = 0.0
    oppose_personas: bool = True
    seed: int = 0

    def split(self, key: str) -> str:
        """The split that a conversation or statement belongs to, by hash."""
        digest = hashlib.sha256(f"{self.seed}/{key}".encode("utf-8", "surrogatepass")).digest()
        drawn = int.from_bytes(digest[:8], "little") / 2**64
        return HELD_OUT if drawn < self.held_out_ratio else TRAIN


@dataclass(frozen=True)
class BadRow:
    """A source row that became no example."""

    file: str
    row: int
    reason: str
    text: str


@dataclass
class FileRead:
    """What became of a file. `rows` counts the rows that were used and the bad ones."""

    file: Path
    rows: int = 0
    examples: list[Example] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)

    def refuse(self, record: Record, reason: str) -> None:
        """Put a row into quarantine."""
        text = record.text or json.dumps(record.value)
        printable = text.encode("utf-8", "replace").decode("utf-8")[:_QUARANTINED_CHARACTERS]
        reason = reason.encode("utf-8", "replace").decode("utf-8")
        self.bad.append(BadRow(str(self.file), record.row, reason, printable))


def conversation_key(*texts: str) -> str:
    """A short key, the same for the same texts everywhere."""
    digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    return digest[:16]


def find_files(pattern: str) -> list[Path]:
    """The files that a path or glob names, sorted.

    Raises:
        DataError: there is none.
    """
    if Path(pattern).is_file():
        return [Path(pattern)]
    files = [Path(name) for name in glob.glob(pattern, recursive=True)]
    files = sorted(file for file in files if file.is_file())
    if files:
        return files
    if Path(pattern).is_dir():
        raise DataError(
            f"sources: {pattern!r} is a folder; name its files with a glob, such as "
            f"{pattern.rstrip('/')}/*.jsonl"
        )
    found = "matches no file" if glob.has_magic(pattern) else "does not exist"
    raise DataError(f"sources: {pattern!r} {found}; correct the `path` of this source")


def read_records(file: Path) -> Iterator[Record]:
    """Every record of a file. Blank lines are none; a line that is not JSON is one with a problem.

    Invalid UTF-8 comes through as lone surrogates, which `Example.validate` refuses row by row.

    Raises:
        DataError: the file cannot be read, or is neither JSON lines nor one JSON array.
    """
    with _open(file) as stream:
        head = _first_bytes(stream, file)
        stream.seek(0)
        if head == b"[":
            values = _parse_array(_read(stream, file), file)
            yield from (Record(row, value) for row, value in enumerate(values))
        else:
            yield from _line_records(stream, file)


def check_file(file: Path) -> None:
    """Read a file to its end. Its lines are not looked at; an array is parsed.

    Raises:
        DataError: as `read_records`.
    """
    with _open(file) as stream:
        if _first_bytes(stream, file) == b"[":
            stream.seek(0)
            _parse_array(_read(stream, file), file)
        while _read(stream, file, _CHUNK_BYTES):
            pass


def file_fingerprint(file: Path) -> str:
    """The sha256 of a file's content.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{file}: the file cannot be read: {error.strerror or error}") from error


def _open(file: Path) -> Any:
    try:
        with file.open("rb") as stream:
            packed = stream.read(2) == _GZIP_MAGIC
        return gzip.open(file, "rb") if packed else file.open("rb")
    except OSError as error:
        raise DataError(f"{file}: the file cannot be read: {error.strerror or error}") from error


def _first_bytes(stream: Any, file: Path) -> bytes:
    head = _read(stream, file, 4096).removeprefix(_BYTE_ORDER_MARK).lstrip()
    if not head:
        raise DataError(f"{file}: the file is empty; {_WANTED}")
    if head.startswith((b"PAR1", b"ARROW1", b"PK\x03\x04", b"\x28\xb5\x2f\xfd")):
        raise DataError(f"{file}: the file begins with {head[:6]!r}, which is not JSON; {_WANTED}")
    return head[:1]


def _read(stream: Any, file: Path, size: int = -1) -> bytes:
    try:
        return stream.read(size)
    except (OSError, EOFError, zlib.error) as error:
        _refuse(file, error)


def _line_records(stream: Any, file: Path) -> Iterator[Record]:
    row = -1
    while True:
        try:
            line = stream.readline()
        except (OSError, EOFError, zlib.error) as error:
            _refuse(file, error)
        if not line:
            return
        row += 1
        text = line.removeprefix(_BYTE_ORDER_MARK).decode("utf-8", "surrogateescape").strip()
        if text:
            yield _parse(row, text)


def _parse(row: int, text: str) -> Record:
    try:
        return Record(row, json.loads(text), text=text)
    except (ValueError, RecursionError) as error:
        return Record(row, None, problem=f"not JSON: {error}", text=text)


def _parse_array(content: bytes, file: Path) -> list[Any]:
    text = content.removeprefix(_BYTE_ORDER_MARK).decode("utf-8", "surrogateescape")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: the file is not a valid JSON array: {error}") from error


def _refuse(file: Path, error: Exception) -> NoReturn:
    raise DataError(f"{file}: the file cannot be read to its end: {error}") from error


def code_fingerprint(rooms: Sequence[str], package: Path = PACKAGE) -> str:
    """sha256 of every source file of these rooms: folders and files of the package."""
    digest = hashlib.sha256()
    for room in rooms:
        place = package / room
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(f"{file.relative_to(package)}\n".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()
