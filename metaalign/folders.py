"""Folders and files on a disk that all workers see, or in object storage.

A folder is a `pathlib.Path`, or a `Remote` over one of pyarrow's file systems, which read the
credentials of their store themselves: for S3 the AWS_... variables and ~/.aws. Whatever object
storage cannot do is a StorageError; what is not there is told apart from that. Knows no Ray.
"""

import hashlib
import os
import shutil
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow.fs import FileSelector, FileSystem, FileType

from metaalign.errors import ConfigError, StorageError

READ_SIZE = 2**22
"""Bytes that are read at once for a checksum."""


@dataclass(frozen=True)
class Remote:
    """A folder or a file in object storage."""

    store: FileSystem
    uri: str
    """As it is shown."""
    path: str
    """As the store knows it: bucket and key."""

    def __truediv__(self, name: str) -> "Remote":
        return Remote(self.store, f"{self.uri}/{name}", f"{self.path}/{name}")

    def __str__(self) -> str:
        return self.uri

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]


Folder = Path | Remote


def open_folder(place: str | Folder) -> Folder:
    """The folder of a path or URI; nothing is looked up yet.

    Args:
        place: A URI may end with the options of its store, such as ?region=eu-central-1.

    Raises:
        ConfigError: there is no such store.
    """
    if not isinstance(place, str):
        return place
    if "://" not in place:
        return Path(place)
    try:
        store, path = FileSystem.from_uri(place)
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        raise ConfigError(f"{place}: {error}") from error
    return Remote(store, place.partition("?")[0], path)


def place_below(place: str, name: str) -> str:
    """The path or URI of a folder's child; the options of a URI stay at its end."""
    base, mark, options = place.partition("?")
    return f"{base}/{name}{mark}{options}"


def checkpoints_place(run_folder: str | Path, elsewhere: str | None, output: str) -> str:
    """Path or URI of the folder that a run's checkpoints are kept in.

    Args:
        elsewhere: The setting checkpoint.storage.
        output: The run's name.
    """
    return str(run_folder) if elsewhere is None else place_below(elsewhere, output)


@contextmanager
def _reaching(folder: Folder) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if isinstance(folder, Path):
            raise
        raise StorageError(f"{folder}: the object storage cannot be used: {error}") from error


def child_names(folder: Folder) -> list[str]:
    """Names of the files and folders in it, sorted; none where it does not exist.

    Raises:
        OSError: it cannot be listed.
    """
    if isinstance(folder, Path):
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    with _reaching(folder):
        found = folder.store.get_file_info(FileSelector(folder.path, allow_not_found=True))
    return sorted(each.base_name for each in found)


def files_below(folder: Remote) -> list[Remote]:
    """Every file in a folder of object storage and in those below it; none where it is not there.

    Raises:
        StorageError: it cannot be listed.
    """
    with _reaching(folder):
        selected = FileSelector(folder.path, allow_not_found=True, recursive=True)
        found = folder.store.get_file_info(selected)
    within = [info.path.removeprefix(f"{folder.path}/") for info in found if info.is_file]
    return [folder / name for name in within]


def modified(path: Folder) -> int | None:
    """When a file was written, in nanoseconds; None where that is not known.

    Raises:
        OSError: the storage could not be asked, or there is no such file.
    """
    if isinstance(path, Path):
        return path.stat().st_mtime_ns
    with _reaching(path):
        return path.store.get_file_info(path.path).mtime_ns


@contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """Where to write a file that is put in its place when it is complete, or not at all.

    Two that write the same file at once do not meet. What a killed process leaves ends in `.part`.
    """
    unfinished = file.with_name(f"{file.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield unfinished
        if unfinished.exists():
            os.replace(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Where to write a folder that takes the place of an earlier one when it is complete.

    The earlier one is renamed, and deleted only once the new one is in its place. If a process is
    killed between the two renames, the next one to come here first puts the earlier one back.
    """
    unfinished = folder.with_name(f".{folder.name}.part")
    earlier = folder.with_name(f".{folder.name}.earlier")
    if earlier.exists() and not folder.exists():
        earlier.rename(folder)
    for left in (unfinished, earlier):
        delete_folder(left)
    yield unfinished
    if folder.exists():
        folder.rename(earlier)
    try:
        unfinished.rename(folder)
    except OSError:
        if earlier.exists():
            earlier.rename(folder)
        raise
    delete_folder(earlier)


def size_of(path: Folder) -> int | None:
    """Bytes of a file; None where there is none.

    Raises:
        OSError: the storage could not be asked.
    """
    if isinstance(path, Path):
        return path.stat().st_size if path.is_file() else None
    with _reaching(path):
        found = path.store.get_file_info(path.path)
    return found.size if found.type == FileType.File else None


@contextmanager
def open_to_read(path: Folder) -> Iterator[Any]:
    """A file in binary.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be read.
    """
    with _reaching(path):
        opened: Any = path.open("rb") if isinstance(path, Path) else _open_remote(path)
        with opened as file:
            yield file


def _open_remote(path: Remote) -> Any:
    return path.store.open_input_file(path.path)


@contextmanager
def open_to_write(path: Folder) -> Iterator[Any]:
    """A fresh file in binary, written from its beginning to its end.

    Raises:
        OSError: it cannot be written.
    """
    try:
        with _reaching(path):
            opened: Any = (
                path.open("wb")
                if isinstance(path, Path)
                else path.store.open_output_stream(path.path)
            )
            with opened as file:
                yield file
    except FileNotFoundError as error:
        raise StorageError(f"{path}: cannot be written: {error}") from error


def read_text(path: Folder) -> str:
    """All of a file in UTF-8. Raises as `open_to_read`, and a ValueError for other bytes."""
    with open_to_read(path) as file:
        return file.read().decode()


def write_whole(path: Folder, text: str) -> None:
    """Write a small file that is there with all of its text, or not at all.

    Raises:
        OSError: it cannot be written.
    """
    if not isinstance(path, Path):
        with open_to_write(path) as file:  # an object appears once all of it was taken
            file.write(text.encode())
        return
    with whole_file(path) as unfinished, unfinished.open("wb") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())  # a crash of the machine must not leave the name without the text


def move_file(path: Folder, name: str) -> None:
    """Give a small file another name in its folder.

    Raises:
        OSError: it is not there, or cannot be moved.
    """
    if isinstance(path, Path):
        path.rename(path.with_name(name))
        return
    with _reaching(path):
        path.store.move(path.path, f"{path.path.rpartition('/')[0]}/{name}")


def delete_file(path: Folder) -> None:
    """Delete a file, if it is there.

    Raises:
        OSError: it is there and cannot be deleted.
    """
    if isinstance(path, Path):
        path.unlink(missing_ok=True)
    elif size_of(path) is not None:
        with _reaching(path):
            path.store.delete_file(path.path)


def make_folder(folder: Folder) -> None:
    """A fresh, empty folder: what it held is gone. Object storage has none until it holds a file.

    Raises:
        OSError: it cannot be made.
    """
    delete_folder(folder)
    if isinstance(folder, Path):
        folder.mkdir(parents=True)


def delete_folder(folder: Folder) -> None:
    """Delete it with all that it holds, if it is there.

    Raises:
        OSError: it is there and cannot be deleted.
    """
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=not folder.exists())
        return
    if child_names(folder):
        with _reaching(folder):
            folder.store.delete_dir(folder.path)


def free_bytes(folder: Folder) -> float:
    """What is free there; nothing where it cannot be reached at all, and no end in object storage.

    Args:
        folder: It exists, where it is on a disk.
    """
    if not isinstance(folder, Path):
        return float("inf")
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def checksum(path: Folder) -> str:
    """CRC-32 of a file: 1.9 GB/s on a core where BLAKE2 takes 0.5; no one forges a checkpoint.

    Raises:
        OSError: it cannot be read.
    """
    crc32 = 0
    with open_to_read(path) as file:
        while part := file.read(READ_SIZE):
            crc32 = zlib.crc32(part, crc32)
    return f"{crc32:08x}"


def weights_fingerprint(folder: str | Path) -> str:
    """sha256 over the weight files and config of a Hugging Face folder."""
    digest = hashlib.sha256()
    files = [path for path in Path(folder).iterdir() if path.suffix in (".safetensors", ".bin")]
    for path in [Path(folder) / "config.json", *sorted(files)]:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(READ_SIZE):
                digest.update(block)
    return digest.hexdigest()
