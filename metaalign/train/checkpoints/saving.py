"""Writing checkpoints while training goes on.

`save` copies the state and returns; a thread of each worker writes the copy, over a process group
of its own, so that its talk and training's never mix. Knows no Ray.
"""

import copy
import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh

from metaalign.errors import StorageError, TrainingError
from metaalign.folders import (
    Folder,
    Remote,
    delete_folder,
    free_bytes,
    make_folder,
    open_folder,
    size_of,
)
from metaalign.train.checkpoints.checkpoint_format import (
    SCHEMA_VERSION,
    as_global,
    entry,
    step_folder,
    write_manifest,
)
from metaalign.train.checkpoints.history import keep_checkpoints
from metaalign.train.checkpoints.notices import check_owner
from metaalign.train.checkpoints.shard_files import Writer
from metaalign.train.engines.agreement import from_first, met_by_all, together
from metaalign.train.engines.interface import Engine

MIB = 2**20

logger = logging.getLogger(__name__)


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
        self,
        engine: Engine,
        run_folder: str | Path,
        *,
        identity: Mapping[str, Any],
        newest: int,
        checkpoints: str | Folder | None = None,
        owner: str | None = None,
    ) -> None:
        """Start no thread yet.

        Args:
            run_folder: On a disk that all workers see.
            checkpoints: The folder that they are kept in. None is the run's folder.
            owner: The name under which the job owns the run's folder; see `check_owner`.
            identity: What a resume must not change: fingerprints, seed, batch size.
            newest: Complete checkpoints that are kept.
        """
        self._engine = engine
        self._run_folder = run_folder
        self._checkpoints = open_folder(run_folder if checkpoints is None else checkpoints)
        self._identity = dict(identity)
        self._newest = newest
        self._owner = owner
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
        folder = self._checkpoints / step_folder(snapshot.step)
        try:
            from_first(lambda: self._make_room(folder, snapshot.total_bytes), self._group)
            parts = together(lambda: self._write_tensors(folder, snapshot), self._group)
            files = {name: file for part in parts for name, file in part.items()}
            from_first(lambda: self._commit(folder, snapshot, files), self._group)
        except OSError as error:
            raise met_by_all(self._storage_error(folder, snapshot, error)) from error
        if self._engine.rank == 0:
            self._tidy(snapshot.progress.get("best"))

    def _tidy(self, best: Mapping[str, Any] | None) -> None:
        try:
            keep_checkpoints(self._checkpoints, self._newest, best["step"] if best else None)
        except OSError as error:  # no reason to end a run whose checkpoint is complete
            logger.warning("older checkpoints are not deleted for now: %s", error)

    def _make_room(self, folder: Folder, needed_bytes: int) -> None:
        """Clear what an interrupted attempt or a damaged checkpoint left; is there space?"""
        check_owner(self._run_folder, self._owner)
        make_folder(folder)
        if free_bytes(folder) < needed_bytes:
            raise OSError("no space left on the device")

    def _write_tensors(self, folder: Folder, snapshot: Snapshot) -> dict[str, dict[str, Any]]:
        """Size and checksum of what this worker wrote, by the file's name."""
        writer = Writer(folder)
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
                storage_writer=writer,
                process_group=self._group,
                no_dist=self._group is None,
            )
        except CheckpointException as error:
            # Every worker meets it, whichever could not write.
            causes = [cause for cause, _ in error.failures.values()]
            if not all(isinstance(cause, OSError) for cause in causes):
                raise
            raise OSError(f"{causes[0]}") from error
        return writer.written

    def _commit(self, folder: Folder, snapshot: Snapshot, files: dict[str, Any]) -> None:
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

    def _storage_error(self, folder: Folder, snapshot: Snapshot, error: OSError) -> StorageError:
        # Once all have met the error.
        free = min(together(lambda: free_bytes(self._checkpoints), self._group)) / MIB
        if self._engine.rank == 0:
            # It does not count, and what it takes may be what the job needs to end in order.
            with suppress(OSError, TrainingError):
                check_owner(self._run_folder, self._owner)
                delete_folder(folder)
        if isinstance(folder, Remote):
            return StorageError(
                f"step {snapshot.step}: the checkpoint could not be written: {error}. Submit the "
                "job again once it can be: it goes on from the last complete checkpoint"
            )
        if isinstance(error, StorageError):
            return error
        return StorageError(
            f"step {snapshot.step}: the checkpoint could not be written to {folder}: {error}. It "
            f"takes {snapshot.total_bytes / MIB:.1f} MiB, and {free:.1f} MiB are free there; free "
            "some or lower checkpoint.keep, and submit the job again: it goes on from the last "
            "complete checkpoint"
        )


def _check_in_sight(folder: Folder, files: Mapping[str, Mapping[str, Any]]) -> None:
    """A checkpoint of which each node sees its own files alone could never be loaded.

    Raises:
        StorageError: worker 0 does not see, in full, what another worker wrote.
    """
    for name, file in files.items():
        path = folder / name
        seen_bytes = size_of(path)
        if seen_bytes != file["size_bytes"]:
            seen = "no such file" if seen_bytes is None else f"{seen_bytes} bytes"
            raise StorageError(
                f"{path}: a worker wrote {file['size_bytes']} bytes there, and worker 0 sees "
                f"{seen}: every node must see the same folder; set `storage`, or "
                "checkpoint.storage, to one that all share"
            )
