"""Checkpoints by torch.distributed.checkpoint, which any number of workers can load.

Every trainable parameter and optimizer state is a flat tensor in equal shards, one per worker. A
checkpoint:

    step-0000120/
      .metadata         which file holds which part of which tensor
      __0_0.distcp      the shards of worker 0, and so on
      COMPLETE          written last: the manifest, with size and checksum of every other file

All workers write into one folder, with `saving`; `history` lists the checkpoints of a run. Does not
import Ray.
"""

import json
import warnings
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from metaalign.errors import CheckpointError, StorageError, TrainingError
from metaalign.folders import (
    Folder,
    Remote,
    checksum,
    open_folder,
    read_text,
    size_of,
    write_whole,
)
from metaalign.train.checkpoints.shard_files import Reader
from metaalign.train.engines.agreement import from_first, met_by_all
from metaalign.train.engines.interface import Engine

MARKER = "COMPLETE"
SCHEMA_VERSION = 2


def step_folder(step: int) -> str:
    """Name of the folder of a checkpoint after this many steps."""
    return f"step-{step:07d}"


def write_manifest(folder: Folder, manifest: Mapping[str, Any]) -> None:
    """Write the marker, whole or not at all. The checkpoint is complete once it has the marker."""
    sealed = {"crc32": _seal(manifest), "manifest": manifest}
    write_whole(folder / MARKER, json.dumps(sealed, indent=2) + "\n")


def load_checkpoint(engine: Engine, folder: str | Folder) -> dict[str, Any]:
    """Load a checkpoint, written by any number of workers, into the engine.

    Returns:
        The manifest, as worker 0 reads it.

    Raises:
        CheckpointError: it is incomplete, or belongs to another model or optimizer.
    """
    manifest = from_first(lambda: read_manifest(folder))
    shapes = {name: list(shape) for name, shape in engine.shapes().items()}
    if manifest["shapes"] != shapes or manifest["state_keys"] != list(engine.state_keys()):
        problem = f"{folder}: the checkpoint belongs to another model or optimizer"
        raise met_by_all(CheckpointError(problem))
    engine.prepare_state(manifest["step"])
    mesh = _mesh(engine)
    for key in (None, *engine.state_keys()):
        tensors = {
            entry(name, key): as_global(
                torch.empty_like(engine.shard(name, key)), _numel(engine, name), mesh
            )
            for name in shapes
        }
        _load(tensors, folder, no_dist=mesh is None)
        for name in shapes:
            value = tensors[entry(name, key)]
            engine.load_shard(name, key, value.to_local() if isinstance(value, DTensor) else value)
    engine.refresh()
    return manifest


def iterate_weights(folder: str | Folder) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and whole float32 value of every parameter. Loads one at a time, without other
    workers.

    Raises:
        CheckpointError: the marker is missing or damaged.
    """
    for name, shape in read_manifest(folder)["shapes"].items():
        tensor = torch.empty(torch.Size(shape).numel())
        _load({entry(name, None): tensor}, folder, no_dist=True)
        yield name, tensor.view(shape)


def _load(tensors: dict[str, Any], folder: str | Folder, *, no_dist: bool) -> None:
    """Fill the tensors from a checkpoint.

    Args:
        no_dist: Load in this process alone. torch's warning about that is suppressed.
    """
    folder = open_folder(folder)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            load(tensors, storage_reader=Reader(folder), no_dist=no_dist)
        except CheckpointException as error:  # a BaseException, not an Exception
            cause = next((cause for cause, _ in error.failures.values()), error)
            kind = StorageError if isinstance(folder, Remote) else CheckpointError
            # torch raises one worker's error on all of them.
            problem = kind(f"{folder}: the checkpoint cannot be read: {cause}")
            raise met_by_all(problem) from error


def read_manifest(folder: str | Folder) -> dict[str, Any]:
    """The manifest in a checkpoint's marker.

    Raises:
        CheckpointError: there is no marker, or it is damaged or has another format.
        StorageError: the object storage could not be read.
    """
    folder = open_folder(folder)
    try:
        sealed = json.loads(read_text(folder / MARKER))
        manifest = sealed["manifest"]
    except StorageError:
        raise
    except OSError as error:
        raise CheckpointError(f"{folder}: the checkpoint is not complete: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / MARKER}: damaged: {error}") from error
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise CheckpointError(
            f"{folder}: the checkpoint has format version {manifest.get('schema_version')!r}, "
            f"expected {SCHEMA_VERSION}"
        )
    if sealed["crc32"] != _seal(manifest):
        raise CheckpointError(f"{folder / MARKER}: damaged: its checksum does not match")
    return manifest


def find_damage(folder: str | Folder, *, rank: int = 0, world_size: int = 1) -> str | None:
    """The first problem in a worker's share of a checkpoint's files; None if there is none.

    Raises:
        StorageError: the object storage could not be read; the checkpoint may be undamaged.
    """
    folder = open_folder(folder)
    try:
        files = read_manifest(folder)["files"]
        for name in sorted(files)[rank::world_size]:
            problem = _damage(folder / name, **files[name])
            if problem is not None:
                return problem
    except StorageError:
        raise
    except (CheckpointError, OSError) as error:
        return str(error)
    return None


def _damage(path: Folder, *, size_bytes: int, crc32: str) -> str | None:
    found = size_of(path)
    if found is None:
        return f"{path} is missing"
    if found != size_bytes:
        return f"{path} is cut short: {found} of {size_bytes} bytes"
    if checksum(path) != crc32:
        return f"{path} has another checksum than when it was written"
    return None


def _seal(manifest: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(manifest, sort_keys=True).encode()):08x}"


def check_identity(
    manifest: Mapping[str, Any], identity: Mapping[str, Any], folder: Folder
) -> None:
    """Check that a checkpoint belongs to a run with this identity.

    Raises:
        TrainingError: it does not. The message names every key that changed, with both values.
    """
    old = manifest["identity"]
    changed = [key for key in {**old, **identity} if old.get(key) != identity.get(key)]
    if changed:
        lines = [f"{key}: {old.get(key)!r} then, {identity.get(key)!r} now" for key in changed]
        raise TrainingError(
            f"{folder} holds a run that cannot be continued with these settings:\n  "
            + "\n  ".join(lines)
            + "\nGive another `output`, or delete that folder to start anew"
        )


def _mesh(engine: Engine) -> DeviceMesh | None:
    if not dist.is_initialized():
        return None
    return init_device_mesh(engine.device.type, (engine.world_size,))


def as_global(shard: Tensor, numel: int, mesh: DeviceMesh | None) -> Tensor:
    """One flat tensor over all workers, of which this worker holds `shard`."""
    if mesh is None:
        return shard
    return DTensor.from_local(
        shard, mesh, [Shard(0)], run_check=False, shape=torch.Size([numel]), stride=(1,)
    )


def entry(name: str, key: str | None) -> str:
    """Name in a checkpoint of a parameter, or of its optimizer state `key`."""
    return f"{key or 'parameter'}/{name}"


def _numel(engine: Engine, name: str) -> int:
    return torch.Size(engine.shapes()[name]).numel()
