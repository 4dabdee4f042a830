"""The checkpoints of a run: lists, checks, chooses and deletes them.

    RUN/
      step-0000100/             complete: it has its marker
      step-0000120/
      damaged-step-0000140/     complete, but a file has changed since; only the last is kept
      step-0000160/             no marker: it is being written, or its writing was interrupted

`checkpoint.storage` holds the same folders, and the file RUN with the path of the run's folder. In
object storage a damaged checkpoint keeps its name, and its marker is renamed to DAMAGED. Does not
import Ray.
"""

import logging
from functools import partial

from metaalign.errors import CheckpointError
from metaalign.folders import (
    Folder,
    Remote,
    child_names,
    delete_file,
    delete_folder,
    move_file,
    open_folder,
    size_of,
)
from metaalign.train.checkpoints.checkpoint_format import (
    MARKER,
    find_damage,
    read_manifest,
    step_folder,
)
from metaalign.train.engines.agreement import from_first, met_by_all, together
from metaalign.train.engines.interface import Engine

DAMAGED = "DAMAGED"
"""New name of the marker of a damaged checkpoint in object storage."""

logger = logging.getLogger(__name__)


def saved_steps(checkpoints: str | Folder) -> list[int]:
    """Steps of the checkpoints that have their marker, newest first.

    Raises:
        OSError: the storage could not be read.
    """
    checkpoints = open_folder(checkpoints)
    names = [name for name in child_names(checkpoints) if name.startswith("step-")]
    complete = [name for name in names if size_of(checkpoints / name / MARKER) is not None]
    return sorted((int(name.removeprefix("step-")) for name in complete), reverse=True)


def newest_checkpoint(checkpoints: str | Folder) -> Folder | None:
    """The newest checkpoint with a readable marker; None if there is none.

    Quick, since it does not read the other files: they may be damaged.
    """
    for step in saved_steps(checkpoints):
        folder = open_folder(checkpoints) / step_folder(step)
        try:
            read_manifest(folder)
        except CheckpointError:
            continue
        return folder
    return None


def newest_whole(checkpoints: str | Folder) -> Folder | None:
    """The newest undamaged checkpoint; None if there is none. Logs a warning for each newer one.

    Raises:
        CheckpointError: there are checkpoints, and all are damaged.
    """
    checkpoints, damage = open_folder(checkpoints), []
    for step in saved_steps(checkpoints):
        folder = checkpoints / step_folder(step)
        problem = find_damage(folder)
        if problem is None:
            return folder
        damage.append(problem)
        logger.warning("%s; using the checkpoint before it", problem)
    if damage:
        raise _all_damaged(checkpoints)
    return None


def agree_on_checkpoint(engine: Engine, checkpoints: str | Folder) -> Folder | None:
    """Like `newest_whole`, but every worker reads a share of the files. Every worker must call it.

    Renames newer, damaged checkpoints.

    Raises:
        CheckpointError: there are checkpoints, and all are damaged.
    """
    checkpoints, damaged = open_folder(checkpoints), []
    for step in from_first(lambda: saved_steps(checkpoints)):
        folder = checkpoints / step_folder(step)
        rank, world_size = engine.rank, engine.world_size
        problems = together(partial(find_damage, folder, rank=rank, world_size=world_size))
        if problems[rank] is not None:
            logger.warning("%s; using the checkpoint before it", problems[rank])
        if not any(problems):
            from_first(lambda: _set_aside(checkpoints, damaged))
            return folder
        damaged.append(folder)
    if damaged:
        raise met_by_all(_all_damaged(checkpoints))
    return None


def choose_checkpoint(checkpoints: str | Folder, wanted: str | int | None) -> Folder | None:
    """The checkpoint to export, with all files checked; None if there is no checkpoint.

    A damaged newest checkpoint is replaced by the one before it. A missing or damaged best one is
    replaced by the newest if `wanted` is None.

    Args:
        wanted: "newest", "best" or a number of steps. None is the best if the run kept one,
            otherwise the newest.

    Raises:
        CheckpointError: the checkpoint does not exist or is damaged.
    """
    newest = newest_whole(checkpoints)
    if newest is None or wanted == "newest":
        return newest
    best = best_step(newest)
    if wanted == "best" and best is None:
        raise CheckpointError(
            f"{checkpoints}: the run kept no best checkpoint; set `checkpoint` to newest, or train "
            "with held_out.best_metric"
        )
    step = best if wanted in (None, "best") else int(wanted)
    if step is None:
        return newest
    problem = _find_problem(open_folder(checkpoints), step)
    if problem is None:
        return open_folder(checkpoints) / step_folder(step)
    if wanted is None:
        logger.warning("the best checkpoint cannot be used: %s; using the newest", problem)
        return newest
    raise CheckpointError(f"{problem}; set `checkpoint` to another")


def _find_problem(checkpoints: Folder, step: int) -> str | None:
    """Why the checkpoint of this step cannot be used; None if it can."""
    steps = saved_steps(checkpoints)
    if step in steps:
        return find_damage(checkpoints / step_folder(step))
    listed = ", ".join(map(str, steps))
    return f"{checkpoints}: there is no checkpoint of {step} steps, only of {listed}"


def best_step(folder: Folder) -> int | None:
    """Step of the best checkpoint, as recorded in this one; None if there is none."""
    best = read_manifest(folder)["progress"].get("best")
    return None if best is None else best["step"]


def keep_checkpoints(checkpoints: str | Folder, newest: int, best: int | None = None) -> None:
    """Delete all checkpoints older than the newest one, except those to keep.

    Args:
        newest: Number of complete checkpoints to keep.
        best: Step of the best checkpoint, which is kept too. It may be one of the newest.
    """
    checkpoints = open_folder(checkpoints)
    steps = saved_steps(checkpoints)
    kept = [step_folder(step) for step in steps if step in steps[:newest] or step == best]
    for name in child_names(checkpoints):
        if name.startswith("step-") and kept and name < kept[0] and name not in kept:
            _delete(checkpoints / name)


def _delete(folder: Folder) -> None:
    try:
        # The marker is deleted first: an interrupted deletion must leave no complete checkpoint.
        delete_file(folder / MARKER)
        delete_folder(folder)
    except OSError as error:
        logger.warning("%s could not be deleted: %s", folder, error)


def _set_aside(checkpoints: Folder, folders: list[Folder]) -> None:
    """Rename damaged checkpoints so that no resume finds them. Keeps the newest, to find the cause,
    and deletes the others."""
    for folder in folders:
        if isinstance(folder, Remote):
            # Large folders cannot be renamed there. Training overwrites it at the same step.
            move_file(folder / MARKER, DAMAGED)
            logger.warning("%s is set aside: its %s is now %s", folder, MARKER, DAMAGED)
            continue
        target = folder.with_name(f"damaged-{folder.name}")
        delete_folder(target)
        folder.rename(target)
        logger.warning("%s is set aside as %s", folder, target.name)
    # Each takes as much space as a checkpoint.
    aside = [name for name in child_names(checkpoints) if name.startswith("damaged-step-")]
    for older in aside[:-1]:
        _delete(checkpoints / older)


def _all_damaged(checkpoints: Folder) -> CheckpointError:
    return CheckpointError(
        f"{checkpoints}: every checkpoint is damaged; delete the folder to start anew, or restore "
        "one from a backup"
    )
