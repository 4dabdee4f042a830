"""Checkpoints by torch.distributed.checkpoint, cut anew for any number of workers.

Every trainable parameter and optimizer state is a flat tensor, cut in equal shares over the
workers. A checkpoint:

    step-0000120/
      .metadata         which file holds which part of which tensor
      __0_0.distcp      what worker 0 wrote, and so on
      COMPLETE          written last: the manifest, with the size of every other file

Knows no Ray: workers may write to one folder or each to one of its own, which someone merges.
"""

import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from metaalign.errors import CheckpointError, TrainingError
from metaalign.train.engines import Engine

MARKER = "COMPLETE"
SCHEMA_VERSION = 1


def step_folder(step: int) -> str:
    """Name of the folder of a checkpoint after this many steps."""
    return f"step-{step:07d}"


def save_checkpoint(
    engine: Engine,
    folder: str | Path,
    *,
    step: int,
    identity: Mapping[str, Any],
    progress: Mapping[str, Any],
) -> None:
    """Write this worker's part; worker 0 also writes the marker. Every worker calls it.

    Args:
        folder: Where to write: shared, or each worker's own.
        step: Optimizer steps taken, at least one.
        identity: What a resume must not change: fingerprints, seed, batch size.
        progress: What a resume goes on from, beside the tensors.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = [(name, key) for key in (None, *engine.state_keys()) for name in engine.shapes()]
    mesh = _mesh(engine)
    tensors = {
        _entry(name, key): _as_global(engine.shard(name, key), _numel(engine, name), mesh)
        for name, key in names
    }
    save(tensors, storage_writer=FileSystemWriter(folder), no_dist=mesh is None)
    files = _written_files(folder, engine)
    if engine.rank == 0:
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "step": step,
            "identity": dict(identity),
            "progress": dict(progress),
            "state_keys": list(engine.state_keys()),
            "shapes": {name: list(shape) for name, shape in engine.shapes().items()},
            "files": files,
        }
        partial = folder / f".{MARKER}"
        partial.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        partial.rename(folder / MARKER)


def load_checkpoint(engine: Engine, folder: str | Path) -> dict[str, Any]:
    """Put a checkpoint into the engine, whatever number of workers wrote it; the manifest.

    Raises:
        CheckpointError: it is incomplete, or of another model or optimizer.
    """
    manifest = read_manifest(folder)
    shapes = {name: list(shape) for name, shape in engine.shapes().items()}
    if manifest["shapes"] != shapes or manifest["state_keys"] != list(engine.state_keys()):
        raise CheckpointError(f"{folder}: the checkpoint is of another model or optimizer")
    engine.prepare_state(manifest["step"])
    mesh = _mesh(engine)
    for key in (None, *engine.state_keys()):
        tensors = {
            _entry(name, key): _as_global(
                torch.empty_like(engine.shard(name, key)), _numel(engine, name), mesh
            )
            for name in shapes
        }
        _load(tensors, folder, no_dist=mesh is None)
        for name in shapes:
            value = tensors[_entry(name, key)]
            engine.load_shard(name, key, value.to_local() if isinstance(value, DTensor) else value)
    engine.refresh()
    return manifest


def load_weights(folder: str | Path) -> dict[str, Tensor]:
    """Every whole float32 parameter, by name, in this process alone.

    Raises:
        CheckpointError: it is incomplete.
    """
    manifest = read_manifest(folder)
    tensors = {
        _entry(name, None): torch.empty(torch.Size(shape).numel())
        for name, shape in manifest["shapes"].items()
    }
    _load(tensors, folder, no_dist=True)
    return {
        name: tensors[_entry(name, None)].view(shape) for name, shape in manifest["shapes"].items()
    }


def _load(tensors: dict[str, Any], folder: str | Path, *, no_dist: bool) -> None:
    """Fill the tensors, in this process alone if asked, without torch's warning about that."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load(tensors, storage_reader=FileSystemReader(folder), no_dist=no_dist)


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """What the marker of a checkpoint says.

    Raises:
        CheckpointError: there is no marker, or a file that it lists is missing or cut short.
    """
    folder = Path(folder)
    try:
        manifest = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: the checkpoint is not complete: {error}") from error
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise CheckpointError(
            f"{folder}: the checkpoint has format version {manifest.get('schema_version')!r}, "
            f"expected {SCHEMA_VERSION}"
        )
    for name, size in manifest["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise CheckpointError(f"{path}: missing or cut short; the checkpoint is not complete")
    return manifest


def newest_checkpoint(run_folder: str | Path) -> Path | None:
    """The complete checkpoint of the most steps in a run's folder; None where there is none."""
    complete = []
    for folder in Path(run_folder).glob("step-*"):
        try:
            complete.append((read_manifest(folder)["step"], folder))
        except CheckpointError:
            continue
    return max(complete)[1] if complete else None


def keep_newest(run_folder: str | Path, count: int) -> None:
    """Delete all but the newest complete checkpoints, and the incomplete ones before them."""
    newest = sorted(Path(run_folder).glob("step-*"), reverse=True)
    complete = [folder for folder in newest if (folder / MARKER).is_file()][:count]
    for folder in newest:
        if complete and folder < complete[0] and folder not in complete:
            # Every worker may call this on one folder.
            shutil.rmtree(folder, ignore_errors=True)


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


def _as_global(shard: Tensor, numel: int, mesh: DeviceMesh | None) -> Tensor:
    """A worker's shard as its part of one flat tensor of all workers."""
    if mesh is None:
        return shard
    return DTensor.from_local(
        shard, mesh, [Shard(0)], run_check=False, shape=torch.Size([numel]), stride=(1,)
    )


def _entry(name: str, key: str | None) -> str:
    return f"{key or 'parameter'}/{name}"


def _numel(engine: Engine, name: str) -> int:
    return torch.Size(engine.shapes()[name]).numel()


def _written_files(folder: Path, engine: Engine) -> dict[str, int]:
    """Name and size of every file of the checkpoint, over all workers."""
    own = list(folder.glob(f"__{engine.rank}_*.distcp"))
    own += [folder / ".metadata"] if engine.rank == 0 else []
    sizes = {path.name: path.stat().st_size for path in own}
    if not dist.is_initialized():
        return sizes
    gathered: list[Any] = [None] * engine.world_size
    dist.all_gather_object(gathered, sizes)
    return {name: size for part in gathered for name, size in part.items()}
