"""What one worker returns or meets, on all of them: none may wait for one that has given up.

Without `torch.distributed` there is one worker. Knows no Ray.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from metaalign.errors import MetaAlignError

T = TypeVar("T")


def together(action: Callable[[], T], group: Any = None) -> list[T]:
    """Do something on every worker; what each returned, by rank.

    Args:
        group: The process group of all workers to talk over. None is the default one.

    Raises:
        OSError: what any of them met, on all of them.
        MetaAlignError: likewise.
    """
    outcome: tuple[Any, OSError | MetaAlignError | None]
    try:
        outcome = (action(), None)
    except MetaAlignError as error:
        outcome = (None, error)
    except OSError as error:
        # Not every OSError of a library can be pickled.
        outcome = (None, OSError(str(error)))
    found: list[Any] = [outcome]
    if dist.is_initialized():
        found = [None] * dist.get_world_size(group)
        dist.all_gather_object(found, outcome, group=group)
    for _, problem in found:
        if problem is not None:
            raise problem
    return [result for result, _ in found]


def from_first(action: Callable[[], T], group: Any = None) -> T:
    """Do something on worker 0 alone; what it returned, on every worker. Raises as `together`."""
    first = not dist.is_initialized() or dist.get_rank() == 0
    found: list[Any] = together(lambda: action() if first else None, group)
    return found[0]
