"""Rejects useless plans before a worker starts. Does not import Ray."""

import math

from metaalign.errors import ConfigError, PlanError
from metaalign.store.token_store import TokenStore
from metaalign.train.task import Materials, Task, select_held_out


def check_plan(task: Task, materials: Materials) -> None:
    """Find groups too large for one step, epochs of one step, and measurements without examples.

    Raises:
        ConfigError: lists every problem, each with the setting to change.
    """
    # A group that is too large is often why an epoch is a single step.
    steps = _large_group(task, materials) or _single_step(task, materials)
    problems = [problem for problem in (steps, _not_held_out(task, materials)) if problem]
    if problems:
        raise ConfigError(f"{task.job}: " + "\n  ".join(problems))


def _large_group(task: Task, materials: Materials) -> str:
    batch, columns = task.config.batch, materials.store.columns
    group = materials.plan.largest_group()
    most = batch.max_group_ratio * batch.global_batch_size
    if len(group) <= max(1, most):
        return ""
    first = materials.plan.selection.example[group[0]]
    ratio = math.ceil(len(group) / batch.global_batch_size)
    return (
        f"batch.group_by {batch.group_by!r}: the group of row {columns.source_row[first]} of "
        f"{columns.source_file[first]} has {len(group)} examples, which one optimizer step would "
        f"hold; the limit is {most:g}, batch.max_group_ratio ({batch.max_group_ratio:g}) "
        f"times batch.global_batch_size ({batch.global_batch_size}). Set batch.group_by to "
        f"'example', or batch.max_group_ratio to {ratio} to allow it"
    )


def _single_step(task: Task, materials: Materials) -> str:
    """The problem if `length.epochs` ends the run and an epoch of several examples is one step.

    A run that `length.max_steps` ends is not a problem: its number of steps was given.
    """
    length, plan, batch = task.config.length, materials.plan, task.config.batch
    by_steps = length.max_steps is not None and plan.num_steps >= length.max_steps
    if by_steps or len(plan.selection) == 1 or min(plan.steps_per_epoch, plan.num_steps) > 1:
        return ""
    return (
        f"length.epochs {length.epochs:g}: an epoch of {len(plan.selection)} examples is "
        f"{plan.steps_per_epoch} optimizer step(s), and the run {plan.num_steps}. Lower "
        f"batch.global_batch_size ({batch.global_batch_size}), or, if you want so few updates, "
        f"set their number: length.epochs=null length.max_steps={plan.num_steps}"
    )


def _not_held_out(task: Task, materials: Materials) -> str:
    config = task.config.held_out
    setting = "best_metric" if config.best_metric else "every_steps" if config.every_steps else None
    if setting is None or materials.held_out is not None:
        return ""
    return (
        f"held_out.{setting} {getattr(config, setting)!r}: there is nothing to measure: "
        f"{why_nothing_is_held_out(task, materials.store)}. Hold examples out in the prepare job "
        "(held_out_ratio), or leave out held_out.every_steps and held_out.best_metric"
    )


def why_nothing_is_held_out(task: Task, store: TokenStore) -> str:
    """The reason why `Materials.held_out` is None."""
    try:
        select_held_out(task, store)
    except PlanError as error:
        return str(error)
    raise AssertionError("there are held-out examples")
