"""Which checkpoints a run has: the newest, the newest that is whole, those to keep.

    RUN/
      step-0000100/             complete: it has its marker
      step-0000120/
      damaged-step-0000140/     complete, but a file was not what had been written
      step-0000160/             no marker: being written, or cut off

Knows no Ray.
"""

import logging
import shutil
from pathlib import Path

import torch

from metaalign.errors import CheckpointError
from metaalign.train.checkpoints import MARKER, find_damage, read_manifest, step_folder
from metaalign.train.engines import Engine

logger = logging.getLogger(__name__)


def saved_steps(run_folder: str | Path) -> list[int]:
    """Steps of the checkpoints that have their marker, newest first."""
    folders = (path.parent for path in Path(run_folder).glob(f"step-*/{MARKER}"))
    return sorted((int(folder.name.removeprefix("step-")) for folder in folders), reverse=True)


def newest_checkpoint(run_folder: str | Path) -> Path | None:
    """The newest checkpoint whose marker can be read; None where there is none.

    Its files are not read: this is quick, and no promise.
    """
    for step in saved_steps(run_folder):
        folder = Path(run_folder) / step_folder(step)
        try:
            read_manifest(folder)
        except CheckpointError:
            continue
        return folder
    return None


def newest_whole(run_folder: str | Path) -> Path | None:
    """The newest checkpoint whose every file is what was written; warns of those after it.

    Raises:
        CheckpointError: there are checkpoints, and all are damaged.
    """
    run_folder, damage = Path(run_folder), []
    for step in saved_steps(run_folder):
        folder = run_folder / step_folder(step)
        problem = find_damage(folder)
        if problem is None:
            return folder
        damage.append(problem)
        logger.warning("%s; using the checkpoint before it", problem)
    if damage:
        raise _all_damaged(run_folder)
    return None


def agree_on_checkpoint(engine: Engine, run_folder: str | Path) -> Path | None:
    """As `newest_whole`, every worker reading a share of the files. Every worker calls it.

    Damaged checkpoints that are newer are set aside, under another name.

    Raises:
        CheckpointError: there are checkpoints, and all are damaged.
    """
    run_folder, damaged = Path(run_folder), []
    while step := _next_step(engine, run_folder, len(damaged)):
        folder = run_folder / step_folder(step)
        problem = find_damage(folder, rank=engine.rank, world_size=engine.world_size)
        if problem is not None:
            logger.warning("%s; using the checkpoint before it", problem)
        if not _total(engine, problem is not None):
            if engine.rank == 0:
                _set_aside(damaged)
            return folder
        damaged.append(folder)
    if damaged:
        raise _all_damaged(run_folder)
    return None


def choose_checkpoint(run_folder: str | Path, wanted: str | int | None) -> Path | None:
    """A checkpoint to export, every file of which was read; None where there is none.

    Args:
        wanted: "newest", "best" or a number of steps. None is the best where the run kept one,
            else the newest.

    Raises:
        CheckpointError: it is not there, or damaged; the newest gives way to the one before it.
    """
    newest = newest_whole(run_folder)
    if newest is None or wanted == "newest":
        return newest
    best = best_step(newest)
    if wanted == "best" and best is None:
        raise CheckpointError(
            f"{run_folder}: the run kept no best checkpoint; set `checkpoint` to newest, or train "
            "with held_out.best_metric"
        )
    step = best if wanted in (None, "best") else int(wanted)
    if step is None:
        return newest
    if step not in saved_steps(run_folder):
        raise CheckpointError(
            f"{run_folder}: there is no checkpoint of {step} steps, only of "
            f"{', '.join(map(str, saved_steps(run_folder)))}; set `checkpoint` to one of them"
        )
    folder = Path(run_folder) / step_folder(step)
    if problem := find_damage(folder):
        raise CheckpointError(f"{problem}; set `checkpoint` to another")
    return folder


def best_step(folder: Path) -> int | None:
    """Steps of the best checkpoint, by what one of the run's checkpoints knows."""
    best = read_manifest(folder)["progress"].get("best")
    return None if best is None else best["step"]


def keep_checkpoints(run_folder: str | Path, newest: int, best: int | None = None) -> None:
    """Delete all complete checkpoints but the newest and the best, and what is incomplete.

    Args:
        newest: How many of the newest are kept.
        best: Steps of the best. It may be one of the newest.
    """
    steps = saved_steps(run_folder)
    kept = [step_folder(step) for step in steps if step in steps[:newest] or step == best]
    for folder in Path(run_folder).glob("step-*"):
        if kept and folder.name < kept[0] and folder.name not in kept:
            _delete(folder)


def _delete(folder: Path) -> None:
    try:
        # The marker goes first: what is left of a deletion that is cut off does not count.
        (folder / MARKER).unlink(missing_ok=True)
        shutil.rmtree(folder)
    except OSError as error:
        logger.warning("%s could not be deleted: %s", folder, error)


def _next_step(engine: Engine, run_folder: Path, skipped: int) -> int:
    """Step of the newest checkpoint but for those skipped, as worker 0 sees it; 0 for none."""
    steps = saved_steps(run_folder)[skipped:] if engine.rank == 0 else []
    return int(_total(engine, steps[0] if steps else 0))


def _total(engine: Engine, value: float) -> float:
    return float(engine.sum(torch.tensor(float(value), dtype=torch.float64, device=engine.device)))


def _set_aside(folders: list[Path]) -> None:
    for folder in folders:
        target = folder.with_name(f"damaged-{folder.name}")
        shutil.rmtree(target, ignore_errors=True)
        folder.rename(target)
        logger.warning("%s is set aside as %s", folder, target.name)


def _all_damaged(run_folder: Path) -> CheckpointError:
    return CheckpointError(
        f"{run_folder}: every checkpoint is damaged; delete the folder to start anew, or restore "
        "one from a backup"
    )
