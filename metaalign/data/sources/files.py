"""Finds the files of a path, a glob or a URI, and computes their fingerprints.

Independent of the files' kinds and the shapes of rows.
"""

import glob
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from fsspec.utils import glob_translate

from metaalign.errors import DataError
from metaalign.folders import Folder, Remote, files_below, modified, open_folder, size_of


def find_files(pattern: str) -> Sequence[Folder]:
    """The files that match a path, a URI, or a glob of either, sorted.

    Raises:
        DataError: no file matches.
        StorageError: object storage cannot be read.
    """
    files = _remote_files(pattern) if "://" in pattern else _local_files(pattern)
    if files:
        return files
    found = "matches no file" if glob.has_magic(pattern.partition("?")[0]) else "does not exist"
    raise DataError(f"sources: {pattern!r} {found}; correct the `path` of this source")


def file_fingerprint(file: Folder) -> str:
    """The sha256 of a file's content. In object storage, that of its name, size and time instead.

    Raises:
        DataError: the file cannot be read.
        StorageError: object storage cannot be read.
    """
    if isinstance(file, Remote):
        state = f"{file}\n{size_of(file)}\n{modified(file)}"
        return hashlib.sha256(state.encode()).hexdigest()
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{file}: the file cannot be read: {error.strerror or error}") from error


def _local_files(pattern: str) -> list[Path]:
    try:
        if Path(pattern).is_file():
            return [Path(pattern)]
        files = [Path(name) for name in glob.glob(pattern, recursive=True)]
        found = sorted(file for file in files if file.is_file())
        is_folder = not found and Path(pattern).is_dir()
    except OSError as error:  # such as a name that is too long
        raise DataError(
            f"sources: {pattern!r} cannot be looked up: {error.strerror}; correct the `path` of "
            "this source"
        ) from error
    if is_folder:
        raise DataError(
            f"sources: {pattern!r} is a folder; name its files with a glob, such as "
            f"{pattern.rstrip('/')}/*.jsonl"
        )
    return found


def _remote_files(pattern: str) -> Sequence[Folder]:
    path, mark, options = pattern.partition("?")
    if not glob.has_magic(path):
        file = open_folder(pattern)
        return [file] if size_of(file) is not None else []
    fixed = path[: re.search(r"[*\[]", path).start()].rpartition("/")[0]  # pyright: ignore
    folder = open_folder(fixed + mark + options)
    assert isinstance(folder, Remote)
    wanted = re.compile(glob_translate(path)).match
    files = [file for file in files_below(folder) if wanted(str(file))]
    return sorted(files, key=str)
