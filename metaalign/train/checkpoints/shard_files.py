"""Reads and writes files of torch.distributed.checkpoint in any folder, with checksums."""

import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.distributed.checkpoint.filesystem import (
    FileSystemBase,
    FileSystemReader,
    FileSystemWriter,
)

from metaalign.folders import (
    Folder,
    Remote,
    delete_file,
    move_file,
    open_to_read,
    open_to_write,
    size_of,
)

WRITE_SIZE = 2**26
"""Largest number of bytes per write, since a storage client may copy what it gets."""


class Writer(FileSystemWriter):
    """Writes a checkpoint's tensors into a folder, and records size and checksum of each file."""

    def __init__(self, folder: Folder) -> None:
        super().__init__(str(folder), sync_files=not isinstance(folder, Remote))
        self.fs: Any = _Files()
        self.path: Any = folder

    @property
    def checkpoint_id(self) -> str:
        return str(self.path)

    @property
    def written(self) -> dict[str, dict[str, Any]]:
        """Size and checksum of each written file, by name."""
        return self.fs.written


class Reader(FileSystemReader):
    """Reads a checkpoint's tensors from a folder."""

    def __init__(self, folder: Folder) -> None:
        super().__init__(str(folder))
        self.fs: Any = _Files()
        self.path: Any = folder

    @property
    def checkpoint_id(self) -> str:
        return str(self.path)

    def _slice_file(self, file: Any, sinfo: Any) -> Any:
        if not isinstance(self.path, Remote):
            return super()._slice_file(file, sinfo)
        file.seek(sinfo.offset)  # one request per tensor; torch.load would make several
        return io.BytesIO(file.read(sinfo.length))


class _Files(FileSystemBase):
    """The file system interface of torch.distributed.checkpoint over `metaalign.folders`."""

    def __init__(self) -> None:
        self.written: dict[str, dict[str, Any]] = {}

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[Any]:  # type: ignore[override]
        if mode == "rb":
            with open_to_read(path) as file:
                yield file
            return
        with open_to_write(path) as file:
            stream = _ChecksumFile(file)
            try:
                yield stream
            except RuntimeError:
                # torch's zip writer replaces the error of a failed write by its own.
                if stream.failure is not None:
                    raise stream.failure from None
                raise
            self.written[path.name] = stream.summary()

    def concat_path(self, path: Any, suffix: str) -> Any:
        return path / suffix

    def init_path(self, path: Any) -> Any:
        return path

    def rename(self, path: Any, new_path: Any) -> None:
        move_file(path, new_path.name)
        self.written[new_path.name] = self.written.pop(path.name)

    def mkdir(self, path: Any) -> None:
        if not isinstance(path, Remote):
            path.mkdir(parents=True, exist_ok=True)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return isinstance(checkpoint_id, str | os.PathLike)

    def exists(self, path: Any) -> bool:
        return size_of(path) is not None

    def rm_file(self, path: Any) -> None:
        delete_file(path)


class _ChecksumFile(io.RawIOBase):
    """A file written from start to end, which computes the checksum of its content."""

    def __init__(self, file: Any) -> None:
        super().__init__()
        self._file = file
        self._size = self._crc32 = 0
        self.failure: OSError | None = None
        """The error of a failed write."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        """Write all of `data`."""
        whole = memoryview(data).cast("B")
        try:
            for begin in range(0, len(whole), WRITE_SIZE):
                part = whole[begin : begin + WRITE_SIZE]
                self._file.write(part)
                self._crc32 = zlib.crc32(part, self._crc32)
        except OSError as error:
            self.failure = error
            raise
        self._size += len(whole)
        return len(whole)

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        if not self._file.closed:
            self._file.flush()

    def fileno(self) -> int:
        return self._file.fileno()

    def summary(self) -> dict[str, Any]:
        """The file's entry in the manifest."""
        return {"size_bytes": self._size, "crc32": f"{self._crc32:08x}"}
