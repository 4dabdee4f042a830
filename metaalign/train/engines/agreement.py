"""Shares results and errors among the workers, so that none waits for one that has failed.

A worker can fail alone: its node lacks the storage, or its disk is full. There are two cases.

*Between collectives* (opening a store, choosing a checkpoint) the action goes through one of the
functions here. All workers raise the same error and leave together.

*Amid collectives* (a forward pass, an all-reduce) the other workers already wait in another
collective and cannot receive the error. The worker that failed must raise, and must not return: Ray
Train and torchrun end the other workers when one fails, but wait for them when one returns.

`MetaAlignError.on_every_worker` is true in the first case. Without `torch.distributed` there is one
worker. Does not import Ray.
"""

import platform
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch.distributed as dist

from metaalign.errors import MetaAlignError

T = TypeVar("T")
E = TypeVar("E", bound=MetaAlignError)


class _Outcome(NamedTuple):
    """The result or error of an action on one worker. It is sent to the other processes."""

    result: Any
    problem: OSError | MetaAlignError | None
    host: str


def together(action: Callable[[], T], group: Any = None) -> list[T]:
    """Call `action` on every worker, and return the results by rank.

    Args:
        group: The process group of all workers to communicate over. None is the default one.

    Raises:
        OSError: `action` raised it on some worker; all workers raise it. The message names the
            worker unless all failed.
        MetaAlignError: likewise.
    """
    outcomes = _exchange(_try(action), group)
    _raise_any(outcomes)
    return [outcome.result for outcome in outcomes]


def all_or_none(action: Callable[[], T], group: Any = None) -> T:
    """Call `action` on every worker, and return this worker's result. Raises like `together`.

    The results are not sent to other workers, so they may be large.
    """
    outcome = _try(action)
    _raise_any(_exchange(outcome._replace(result=None), group))
    return outcome.result


def from_first(action: Callable[[], T], group: Any = None) -> T:
    """Call `action` on worker 0 alone, and return its result on every worker.

    Raises:
        OSError: `action` raised it on worker 0; all workers raise it.
        MetaAlignError: likewise.
    """
    first = not dist.is_initialized() or dist.get_rank() == 0
    outcome = _exchange(_try(action if first else lambda: None), group)[0]
    if outcome.problem is not None:
        raise outcome.problem
    return outcome.result


def met_by_all(error: E) -> E:
    """Mark an error that every worker raises, because it follows from values equal on all."""
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
