"""Folders and files on a disk that all workers see, or in object storage.

A folder is a `pathlib.Path`, or a `Remote` over one of pyarrow's file systems. These read the
credentials of their store themselves, for S3 from the AWS_... variables and ~/.aws. Failures of
object storage raise StorageError; a missing file raises FileNotFoundError. Does not import Ray.
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
"""Bytes per read when computing a checksum."""


@dataclass(frozen=True)
class Remote:
    """A folder or a file in object storage."""

    store: FileSystem
    uri: str
    """The address shown in messages, without options."""
    path: str
    """The path that pyarrow's file system takes: bucket and key."""

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
    """The folder at a path or URI. Does not access the storage.

    Args:
        place: A URI may end with options of its store, such as ?region=eu-central-1.

    Raises:
        ConfigError: pyarrow has no file system for the URI, or rejects it.
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
    """The path or URI of a folder's child. The options of a URI stay at its end."""
    base, mark, options = place.partition("?")
    return f"{base}/{name}{mark}{options}"


def checkpoints_place(run_folder: str | Path, elsewhere: str | None, output: str) -> str:
    """Path or URI of the folder that holds a run's checkpoints.

    Args:
        elsewhere: The setting checkpoint.storage; None keeps them in the run's folder.
        output: The run's name.
    """
    return str(run_folder) if elsewhere is None else place_below(elsewhere, output)


@contextmanager
def _storage_errors(folder: Folder) -> Iterator[None]:
    """Convert the OSErrors of object storage, except FileNotFoundError, to StorageError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if isinstance(folder, Path):
            raise
        raise StorageError(f"{folder}: object storage failed: {error}") from error


def child_names(folder: Folder) -> list[str]:
    """Sorted names of the files and folders in a folder; empty if the folder does not exist.

    Raises:
        OSError: the folder cannot be listed.
    """
    if isinstance(folder, Path):
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    with _storage_errors(folder):
        found = folder.store.get_file_info(FileSelector(folder.path, allow_not_found=True))
    return sorted(each.base_name for each in found)


def files_below(folder: Remote) -> list[Remote]:
    """Every file in a folder of object storage, recursively; empty if the folder does not exist.

    Raises:
        StorageError: the folder cannot be listed.
    """
    with _storage_errors(folder):
        selected = FileSelector(folder.path, allow_not_found=True, recursive=True)
        found = folder.store.get_file_info(selected)
    within = [info.path.removeprefix(f"{folder.path}/") for info in found if info.is_file]
    return [folder / name for name in within]


def modified(path: Folder) -> int | None:
    """When a file was last written, in nanoseconds since 1970; None if the store does not know.

    Raises:
        OSError: the storage cannot be read, or the file does not exist.
    """
    if isinstance(path, Path):
        return path.stat().st_mtime_ns
    with _storage_errors(path):
        return path.store.get_file_info(path.path).mtime_ns


@contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """Yield a temporary path; on success, rename the file written there to `file`.

    Several processes may write the same file at once: each has its own temporary path. A killed
    process leaves a file whose name ends in `.part`.
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
    """Yield a temporary path; on success, the folder written there replaces `folder`.

    An earlier folder is renamed first, and deleted only after the new one is in place. If a process
    is killed between the two renames, the next call first restores the earlier folder.
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
    """Size of a file in bytes; None if it does not exist.

    Raises:
        OSError: the storage cannot be read.
    """
    if isinstance(path, Path):
        return path.stat().st_size if path.is_file() else None
    with _storage_errors(path):
        found = path.store.get_file_info(path.path)
    return found.size if found.type == FileType.File else None


@contextmanager
def open_to_read(path: Folder) -> Iterator[Any]:
    """Open a file for reading, in binary.

    Raises:
        FileNotFoundError: the file does not exist.
        OSError: the file cannot be read.
    """
    with _storage_errors(path):
        opened: Any = path.open("rb") if isinstance(path, Path) else _open_remote(path)
        with opened as file:
            yield file


def _open_remote(path: Remote) -> Any:
    return path.store.open_input_file(path.path)


@contextmanager
def open_to_write(path: Folder) -> Iterator[Any]:
    """Create or overwrite a file, in binary; without seeking.

    Raises:
        OSError: the file cannot be written.
    """
    try:
        with _storage_errors(path):
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
    """The text of a UTF-8 file.

    Raises:
        FileNotFoundError: the file does not exist.
        OSError: the file cannot be read.
        ValueError: the file is not UTF-8.
    """
    with open_to_read(path) as file:
        return file.read().decode()


def write_whole(path: Folder, text: str) -> None:
    """Write a small file atomically: it never exists with only part of its text.

    Raises:
        OSError: the file cannot be written.
    """
    if not isinstance(path, Path):
        with open_to_write(path) as file:  # an object becomes visible when complete
            file.write(text.encode())
        return
    with whole_file(path) as unfinished, unfinished.open("wb") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())  # a crash of the machine must not leave the name without the text


def move_file(path: Folder, name: str) -> None:
    """Rename a small file within its folder.

    Raises:
        OSError: the file does not exist or cannot be renamed.
    """
    if isinstance(path, Path):
        path.rename(path.with_name(name))
        return
    with _storage_errors(path):
        path.store.move(path.path, f"{path.path.rpartition('/')[0]}/{name}")


def delete_file(path: Folder) -> None:
    """Delete a file if it exists.

    Raises:
        OSError: the file exists but cannot be deleted.
    """
    if isinstance(path, Path):
        path.unlink(missing_ok=True)
    elif size_of(path) is not None:
        with _storage_errors(path):
            path.store.delete_file(path.path)


def make_folder(folder: Folder) -> None:
    """Create an empty folder, after deleting an existing one with all of its content.

    In object storage, a folder exists only once it holds a file.

    Raises:
        OSError: the folder cannot be created.
    """
    delete_folder(folder)
    if isinstance(folder, Path):
        folder.mkdir(parents=True)


def delete_folder(folder: Folder) -> None:
    """Delete a folder with all of its content, if it exists.

    Raises:
        OSError: the folder exists but cannot be deleted.
    """
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=not folder.exists())
        return
    if child_names(folder):
        with _storage_errors(folder):
            folder.store.delete_dir(folder.path)


def free_bytes(folder: Folder) -> float:
    """Free bytes: 0 if the disk cannot be reached, infinity for object storage.

    Args:
        folder: If it is on a disk, it must exist.
    """
    if not isinstance(folder, Path):
        return float("inf")
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def checksum(path: Folder) -> str:
    """CRC-32 of a file. It guards against damage, not against forgery, and reads 1.9 GB/s per core;
    BLAKE2 reads 0.5 GB/s.

    Raises:
        OSError: the file cannot be read.
    """
    crc32 = 0
    with open_to_read(path) as file:
        while part := file.read(READ_SIZE):
            crc32 = zlib.crc32(part, crc32)
    return f"{crc32:08x}"


def weights_fingerprint(folder: str | Path) -> str:
    """SHA-256 of the weight files and the config.json of a Hugging Face folder."""
    digest = hashlib.sha256()
    files = [path for path in Path(folder).iterdir() if path.suffix in (".safetensors", ".bin")]
    for path in [Path(folder) / "config.json", *sorted(files)]:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(READ_SIZE):
                digest.update(block)
    return digest.hexdigest()
