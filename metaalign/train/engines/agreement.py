"""What one worker returns or meets, on all of them: none may wait for one that has given up.

A worker can fail alone: its node lacks the storage, its disk is full. There are two cases.

*Between collectives* (a store is opened, a checkpoint is chosen) the action goes through one of the
functions here. All workers raise the same error, and all of them leave.

*Amid collectives* (a forward pass, an all-reduce) the others already wait in another collective,
where no agreement reaches them. The worker that failed must raise, and must never return: Ray
Train and torchrun end the others when a worker fails, and wait for them when it returns.

`MetaAlignError.on_every_worker` tells the two apart. Without `torch.distributed` there is one
worker. Knows no Ray.
"""

import platform
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch.distributed as dist

from metaalign.errors import MetaAlignError

T = TypeVar("T")
E = TypeVar("E", bound=MetaAlignError)


class _Outcome(NamedTuple):
    """What became of an action on one worker. It crosses processes."""

    result: Any
    problem: OSError | MetaAlignError | None
    host: str


def together(action: Callable[[], T], group: Any = None) -> list[T]:
    """Do something on every worker; what each returned, by rank.

    Args:
        group: The process group of all workers to talk over. None is the default one.

    Raises:
        OSError: what any of them met, on all of them. It names the worker if others met nothing.
        MetaAlignError: likewise.
    """
    outcomes = _exchange(_try(action), group)
    _raise_any(outcomes)
    return [outcome.result for outcome in outcomes]


def all_or_none(action: Callable[[], T], group: Any = None) -> T:
    """Do something on every worker; what it returned on this one. Raises as `together`.

    The results stay where they are, so they may be large.
    """
    outcome = _try(action)
    _raise_any(_exchange(outcome._replace(result=None), group))
    return outcome.result


def from_first(action: Callable[[], T], group: Any = None) -> T:
    """Do something on worker 0 alone; what it returned, on every worker.

    Raises:
        OSError: what worker 0 met, on all of them.
        MetaAlignError: likewise.
    """
    first = not dist.is_initialized() or dist.get_rank() == 0
    outcome = _exchange(_try(action if first else lambda: None), group)[0]
    if outcome.problem is not None:
        raise outcome.problem
    return outcome.result


def met_by_all(error: E) -> E:
    """The error, marked: it follows from values that are alike on all workers, so all raise it."""
    error.on_every_worker = True
    return error


def _try(action: Callable[[], Any]) -> _Outcome:
    try:
        return _Outcome(action(), None, platform.node())
    except MetaAlignError as error:
        return _Outcome(None, met_by_all(error), platform.node())
    except OSError as error:
        # Not every OSError of a library can be pickled.
        return _Outcome(None, OSError(str(error)), platform.node())


def _exchange(outcome: _Outcome, group: Any) -> list[_Outcome]:
    """Every worker's outcome, by rank."""
    if not dist.is_initialized():
        return [outcome]
    found: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, outcome, group=group)
    return found


def _raise_any(outcomes: list[_Outcome]) -> None:
    failed = [rank for rank, outcome in enumerate(outcomes) if outcome.problem is not None]
    if not failed:
        return
    problem, host = outcomes[failed[0]].problem, outcomes[failed[0]].host
    assert problem is not None
    if len(failed) == len(outcomes):
        raise problem
    named = type(problem)(f"{problem} (worker {failed[0]} of {len(outcomes)}, on {host})")
    raise met_by_all(named) if isinstance(named, MetaAlignError) else named
