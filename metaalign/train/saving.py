"""Writing checkpoints while training goes on.

`save` copies the state and returns; a thread of each worker writes the copy, over a process group
of its own, so that its talk and training's never mix. Knows no Ray.
"""

import copy
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh

from metaalign.errors import StorageError
from metaalign.train.agreement import from_first, together
from metaalign.train.checkpoints import (
    METADATA,
    SCHEMA_VERSION,
    as_global,
    describe_file,
    entry,
    step_folder,
    write_manifest,
)
from metaalign.train.engines import Engine
from metaalign.train.history import keep_checkpoints
from metaalign.train.notices import check_owner, read_owner

MIB = 2**20


class Snapshot(NamedTuple):
    """A worker's share of the state after a step, copied to the CPU: training may go on."""

    step: int
    shards: dict[str, Tensor]
    shapes: dict[str, tuple[int, ...]]
    state_keys: tuple[str, ...]
    progress: dict[str, Any]

    @property
    def total_bytes(self) -> int:
        """Of the tensors of all workers."""
        numel = sum(torch.Size(shape).numel() for shape in self.shapes.values())
        return 4 * numel * (1 + len(self.state_keys))


def take_snapshot(engine: Engine, step: int, progress: Mapping[str, Any]) -> Snapshot:
    """Every worker calls it, with the number of steps taken."""
    shapes, keys = engine.shapes(), engine.state_keys()
    shards = {
        entry(name, key): engine.shard(name, key).to("cpu", copy=True)
        for key in (None, *keys)
        for name in shapes
    }
    return Snapshot(step, shards, shapes, keys, copy.deepcopy(dict(progress)))


class Saver:
    """Saves a run's checkpoints. Every worker has one and calls it alike."""

    def __init__(
        self, engine: Engine, run_folder: str | Path, *, identity: Mapping[str, Any], newest: int
    ) -> None:
        """Start no thread yet.

        Args:
            identity: What a resume must not change: fingerprints, seed, batch size.
            newest: Complete checkpoints that are kept.
        """
        self._engine = engine
        self._run_folder = Path(run_folder)
        self._identity = dict(identity)
        self._newest = newest
        self._owner = read_owner(run_folder)
        self._group: Any = None
        self._mesh: DeviceMesh | None = None
        if dist.is_initialized():
            self._group = dist.new_group(backend="gloo")
            self._mesh = DeviceMesh.from_group(self._group, "cpu")
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(self, step: int, progress: Mapping[str, Any]) -> None:
        """Copy the state after this many steps, and write it while training goes on.

        Waits for the checkpoint before it.

        Args:
            progress: What a resume goes on from, beside the tensors.

        Raises:
            StorageError: as `wait`, for the checkpoint before it.
        """
        self.wait()
        snapshot = take_snapshot(self._engine, step, progress)
        self._pending = self._pool.submit(self._write, snapshot)

    def wait(self) -> None:
        """Return when the last checkpoint is complete.

        Raises:
            StorageError: it could not be written, on whichever worker; raised on all of them.
            TrainingError: another job took over the run's folder; likewise.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _write(self, snapshot: Snapshot) -> None:
        folder = self._run_folder / step_folder(snapshot.step)
        try:
            from_first(lambda: self._make_room(folder, snapshot.total_bytes), self._group)
            self._write_tensors(folder, snapshot)
            parts = together(lambda: self._own_files(folder), self._group)
            files = {name: file for part in parts for name, file in part.items()}
            from_first(lambda: self._commit(folder, snapshot, files), self._group)
        except OSError as error:
            raise self._storage_error(folder, snapshot, error) from error
        if self._engine.rank == 0:
            best = snapshot.progress.get("best")
            keep_checkpoints(self._run_folder, self._newest, best["step"] if best else None)

    def _make_room(self, folder: Path, needed_bytes: int) -> None:
        """Clear what an interrupted attempt or a damaged checkpoint left; is there space?"""
        check_owner(self._run_folder, self._owner)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if shutil.disk_usage(folder).free < needed_bytes:
            raise OSError("no space left on the device")

    def _write_tensors(self, folder: Path, snapshot: Snapshot) -> None:
        tensors = {
            entry(name, key): as_global(
                snapshot.shards[entry(name, key)], torch.Size(shape).numel(), self._mesh
            )
            for key in (None, *snapshot.state_keys)
            for name, shape in snapshot.shapes.items()
        }
        try:
            save(
                tensors,
                storage_writer=FileSystemWriter(folder),
                process_group=self._group,
                no_dist=self._group is None,
            )
        except CheckpointException as error:
            # Every worker meets it, whichever could not write.
            causes = [cause for cause, _ in error.failures.values()]
            if not all(_is_storage_failure(cause) for cause in causes):
                raise
            raise OSError(f"{causes[0]}") from error

    def _own_files(self, folder: Path) -> dict[str, dict[str, Any]]:
        """Size and checksum of what this worker wrote, by name."""
        rank = self._engine.rank
        own = [*folder.glob(f"__{rank}_*.distcp"), *([folder / METADATA] if rank == 0 else [])]
        return {path.name: describe_file(path) for path in own}

    def _commit(self, folder: Path, snapshot: Snapshot, files: dict[str, Any]) -> None:
        _check_in_sight(folder, files)
        check_owner(self._run_folder, self._owner)
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "step": snapshot.step,
            "identity": self._identity,
            "progress": snapshot.progress,
            "state_keys": list(snapshot.state_keys),
            "shapes": {name: list(shape) for name, shape in snapshot.shapes.items()},
            "files": files,
        }
        write_manifest(folder, manifest)

    def _storage_error(self, folder: Path, snapshot: Snapshot, error: OSError) -> StorageError:
        free = min(together(self._free_bytes, self._group)) / MIB  # once all have met the error
        if self._engine.rank == 0 and read_owner(self._run_folder) == self._owner:
            # It does not count, and what it takes may be what the job needs to end in order.
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, StorageError):
            return error
        return StorageError(
            f"step {snapshot.step}: the checkpoint could not be written to {folder}: {error}. It "
            f"takes {snapshot.total_bytes / MIB:.1f} MiB, and {free:.1f} MiB are free there; free "
            "some or lower checkpoint.keep, and submit the job again: it goes on from the last "
            "complete checkpoint"
        )

    def _free_bytes(self) -> float:
        """What is free in the run's folder; nothing where it cannot be reached at all."""
        try:
            return shutil.disk_usage(self._run_folder).free
        except OSError:
            return 0


def _check_in_sight(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """A checkpoint of which each node sees its own files alone could never be loaded.

    Raises:
        StorageError: worker 0 does not see, in full, what another worker wrote.
    """
    for name, file in files.items():
        path = folder / name
        seen_bytes = path.stat().st_size if path.is_file() else None
        if seen_bytes != file["size_bytes"]:
            seen = "no such file" if seen_bytes is None else f"{seen_bytes} bytes"
            raise StorageError(
                f"{path}: a worker wrote {file['size_bytes']} bytes there, and worker 0 sees "
                f"{seen}: every node must see the same folder; set `storage` to one that all share"
            )


def _is_storage_failure(cause: BaseException) -> bool:
    # torch's zip writer turns a failed write into a RuntimeError of its own.
    return isinstance(cause, OSError) or "PytorchStreamWriter" in str(cause)
