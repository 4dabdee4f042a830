"""Which checkpoints a run has: the newest, the newest that is whole, those to keep.

    RUN/
      step-0000100/             complete: it has its marker
      step-0000120/
      damaged-step-0000140/     complete, but a file was not what had been written; the last such
      step-0000160/             no marker: being written, or cut off

Knows no Ray.
"""

import logging
import shutil
from functools import partial
from pathlib import Path

from metaalign.errors import CheckpointError
from metaalign.train.agreement import from_first, together
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
    for step in from_first(lambda: saved_steps(run_folder)):
        folder = run_folder / step_folder(step)
        rank, world_size = engine.rank, engine.world_size
        problems = together(partial(find_damage, folder, rank=rank, world_size=world_size))
        if problems[rank] is not None:
            logger.warning("%s; using the checkpoint before it", problems[rank])
        if not any(problems):
            from_first(lambda: _set_aside(run_folder, damaged))
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
        CheckpointError: it is not there, or damaged; the newest gives way to the one before it,
            and the best to the newest where None asked for it.
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
    problem = _find_problem(Path(run_folder), step)
    if problem is None:
        return Path(run_folder) / step_folder(step)
    if wanted is None:
        logger.warning("the best checkpoint cannot be used: %s; using the newest", problem)
        return newest
    raise CheckpointError(f"{problem}; set `checkpoint` to another")


def _find_problem(run_folder: Path, step: int) -> str | None:
    """Why the checkpoint of so many steps cannot be used; None where it can."""
    steps = saved_steps(run_folder)
    if step in steps:
        return find_damage(run_folder / step_folder(step))
    listed = ", ".join(map(str, steps))
    return f"{run_folder}: there is no checkpoint of {step} steps, only of {listed}"


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


def _set_aside(run_folder: Path, folders: list[Path]) -> None:
    for folder in folders:
        target = folder.with_name(f"damaged-{folder.name}")
        shutil.rmtree(target, ignore_errors=True)
        folder.rename(target)
        logger.warning("%s is set aside as %s", folder, target.name)
    # Each takes as much room as a checkpoint; the newest is enough to find out what happened.
    for older in sorted(run_folder.glob("damaged-step-*"))[:-1]:
        _delete(older)


def _all_damaged(run_folder: Path) -> CheckpointError:
    return CheckpointError(
        f"{run_folder}: every checkpoint is damaged; delete the folder to start anew, or restore "
        "one from a backup"
    )
