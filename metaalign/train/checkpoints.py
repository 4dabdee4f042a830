"""Checkpoints by torch.distributed.checkpoint, cut anew for any number of workers.

Every trainable parameter and optimizer state is a flat tensor, cut in equal shares over the
workers. A checkpoint:

    step-0000120/
      .metadata         which file holds which part of which tensor
      __0_0.distcp      what worker 0 wrote, and so on
      COMPLETE          written last: the manifest, with size and checksum of every other file

All workers write into one folder, by `saving`; `history` knows which checkpoints a run has. Knows
no Ray.
"""

import json
import os
import warnings
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from metaalign.errors import CheckpointError, TrainingError
from metaalign.train.agreement import from_first
from metaalign.train.engines import Engine

MARKER = "COMPLETE"
METADATA = ".metadata"
SCHEMA_VERSION = 2

READ_SIZE = 2**22
"""Bytes that are read at once for a checksum."""


def step_folder(step: int) -> str:
    """Name of the folder of a checkpoint after this many steps."""
    return f"step-{step:07d}"


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the marker, whole or not at all: from then on the checkpoint counts."""
    partial = folder / f".{MARKER}"
    sealed = {"crc32": _seal(manifest), "manifest": manifest}
    with partial.open("w", encoding="utf-8") as file:
        file.write(json.dumps(sealed, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.rename(folder / MARKER)


def load_checkpoint(engine: Engine, folder: str | Path) -> dict[str, Any]:
    """Put a checkpoint into the engine, whatever number of workers wrote it; the manifest, as
    worker 0 reads it.

    Raises:
        CheckpointError: it is incomplete, or of another model or optimizer.
    """
    manifest = from_first(lambda: read_manifest(folder))
    shapes = {name: list(shape) for name, shape in engine.shapes().items()}
    if manifest["shapes"] != shapes or manifest["state_keys"] != list(engine.state_keys()):
        raise CheckpointError(f"{folder}: the checkpoint is of another model or optimizer")
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


def iterate_weights(folder: str | Path) -> Iterator[tuple[str, Tensor]]:
    """Every whole float32 parameter with its name, one at a time, in this process alone.

    Raises:
        CheckpointError: the marker is missing or damaged.
    """
    for name, shape in read_manifest(folder)["shapes"].items():
        tensor = torch.empty(torch.Size(shape).numel())
        _load({entry(name, None): tensor}, folder, no_dist=True)
        yield name, tensor.view(shape)


def _load(tensors: dict[str, Any], folder: str | Path, *, no_dist: bool) -> None:
    """Fill the tensors, in this process alone if asked, without torch's warning about that."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load(tensors, storage_reader=FileSystemReader(folder), no_dist=no_dist)


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """What the marker of a checkpoint says.

    Raises:
        CheckpointError: there is no marker, or it is damaged or of another format.
    """
    folder = Path(folder)
    try:
        sealed = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        manifest = sealed["manifest"]
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
        raise CheckpointError(f"{folder / MARKER}: damaged: its checksum is another")
    return manifest


def find_damage(folder: str | Path, *, rank: int = 0, world_size: int = 1) -> str | None:
    """What is wrong with a worker's share of a checkpoint's files; None where nothing is."""
    folder = Path(folder)
    try:
        files = read_manifest(folder)["files"]
        for name in sorted(files)[rank::world_size]:
            size, crc32 = files[name]["size_bytes"], files[name]["crc32"]
            path = folder / name
            if not path.is_file():
                return f"{path} is missing"
            if path.stat().st_size != size:
                return f"{path} is cut short: {path.stat().st_size} of {size} bytes"
            if _checksum(path) != crc32:
                return f"{path} has another checksum than when it was written"
    except (CheckpointError, OSError) as error:
        return str(error)
    return None


def _seal(manifest: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(manifest, sort_keys=True).encode()):08x}"


def describe_file(path: Path) -> dict[str, Any]:
    """What the manifest says of a file."""
    return {"size_bytes": path.stat().st_size, "crc32": _checksum(path)}


def _checksum(path: Path) -> str:
    """CRC-32 of a file: 1.9 GB/s on a core where BLAKE2 takes 0.5; no one forges a checkpoint."""
    crc32 = 0
    with path.open("rb") as file:
        while part := file.read(READ_SIZE):
            crc32 = zlib.crc32(part, crc32)
    return f"{crc32:08x}"


def check_identity(manifest: Mapping[str, Any], identity: Mapping[str, Any], folder: Path) -> None:
    """Refuse to resume another run.

    Raises:
        TrainingError: names every key that changed, with both values.
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
    """A worker's shard as its part of one flat tensor of all workers."""
    if mesh is None:
        return shard
    return DTensor.from_local(
        shard, mesh, [Shard(0)], run_check=False, shape=torch.Size([numel]), stride=(1,)
    )


def entry(name: str, key: str | None) -> str:
    """Under what a checkpoint keeps a parameter, or its optimizer state `key`."""
    return f"{key or 'parameter'}/{name}"


def _numel(engine: Engine, name: str) -> int:
    return torch.Size(engine.shapes()[name]).numel()
