"""Writing checkpoints while training goes on.

`save` copies the state and returns. A thread of each worker writes the copy and communicates over
its own process group, separate from training's. Does not import Ray.
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
    """A worker's shards of the state after a step, copied to the CPU."""

    step: int
    shards: dict[str, Tensor]
    shapes: dict[str, tuple[int, ...]]
    state_keys: tuple[str, ...]
    progress: dict[str, Any]

    @property
    def total_bytes(self) -> int:
        """Size of the tensors of all workers."""
        numel = sum(torch.Size(shape).numel() for shape in self.shapes.values())
        return 4 * numel * (1 + len(self.state_keys))


def take_snapshot(engine: Engine, step: int, progress: Mapping[str, Any]) -> Snapshot:
    """Copy this worker's shards to the CPU, after `step` steps. Every worker must call it."""
    shapes, keys = engine.shapes(), engine.state_keys()
    shards = {
        entry(name, key): engine.shard(name, key).to("cpu", copy=True)
        for key in (None, *keys)
        for name in shapes
    }
    return Snapshot(step, shards, shapes, keys, copy.deepcopy(dict(progress)))


class Saver:
    """Saves a run's checkpoints. Every worker must make the same calls."""

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
        """Prepare the process group. No thread starts before the first `save`.

        Args:
            run_folder: Folder on a disk that all workers share.
            checkpoints: Folder of the checkpoints. None is the run's folder.
            owner: Name under which the job owns the run's folder; see `check_owner`.
            identity: Values that a resumed run must not change: fingerprints, seed, batch size.
            newest: Number of complete checkpoints to keep.
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
        """Copy the state after `step` steps, and write it while training continues.

        Waits for the previous checkpoint.

        Args:
            progress: Further values that a resumed run needs, besides the tensors.

        Raises:
            StorageError: the previous checkpoint could not be written.
            TrainingError: another job took over the run's folder.
        """
        self.wait()
        snapshot = take_snapshot(self._engine, step, progress)
        self._pending = self._pool.submit(self._write, snapshot)

    def wait(self) -> None:
        """Wait until the last checkpoint is complete.

        Raises:
            StorageError: some worker could not write it. Raised on all workers.
            TrainingError: another job took over the run's folder. Raised on all workers.
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
        except OSError as error:  # the new checkpoint is complete, so the run continues
            logger.warning("older checkpoints are not deleted for now: %s", error)

    def _make_room(self, folder: Folder, needed_bytes: int) -> None:
        """Empty the folder of an interrupted or damaged checkpoint, and check for free space."""
        check_owner(self._run_folder, self._owner)
        make_folder(folder)
        if free_bytes(folder) < needed_bytes:
            raise OSError("no space left on the device")

    def _write_tensors(self, folder: Folder, snapshot: Snapshot) -> dict[str, dict[str, Any]]:
        """Write this worker's shards. Returns size and checksum of each file, by name."""
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
            # torch raises it on every worker, even if only one could not write.
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
        # Every worker has raised the error, so all call this.
        free = min(together(lambda: free_bytes(self._checkpoints), self._group)) / MIB
        if self._engine.rank == 0:
            # The checkpoint is incomplete, and the job may need its space to end properly.
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
    """Check that worker 0 sees the files of all workers; otherwise no node could load them all.

    Raises:
        StorageError: worker 0 does not see a file, or not in its full size.
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
