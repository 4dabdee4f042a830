"""Runs a task for every part with Ray Data, on the whole cluster.

Only the parts' numbers go through Ray, so memory does not grow with the data.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
import ray.data
from rich.console import Console

from metaalign.data.work.parts import Part

CONSOLE = Console(markup=False, highlight=False)


def for_each(parts: Sequence[Part], task: Callable[[Part, int], None]) -> None:
    """Run a task for every part and its number, on the whole cluster."""
    run = functools.partial(_run, parts=ray.put(tuple(parts)), task=task)
    with data_context():
        numbers = ray.data.from_items([*range(len(parts))], override_num_blocks=len(parts))
        done = numbers.map_batches(run, batch_size=1).take_all()
    assert len(done) == len(parts), (len(done), len(parts))


@contextmanager
def data_context(**more: Any) -> Iterator[None]:
    """Set up Ray Data for a stage that has the cluster to itself. `more` are further settings."""
    context = ray.data.DataContext.get_current()
    settings = {
        **more,
        "enable_progress_bars": CONSOLE.is_terminal,  # in a log each update is a new line
        "print_on_execution_start": False,
        # Else Ray Data starts one task and waits for its output size: half of two cores are idle.
        "op_resource_reservation_enabled": False,
    }
    before = {name: getattr(context, name) for name in settings}
    try:
        for name, value in settings.items():
            setattr(context, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)


def _run(batch: Any, *, parts: ray.ObjectRef, task: Callable[[Part, int], None]) -> Any:
    (number,) = map(int, batch["item"])
    task(_parts(parts)[number], number)
    return batch


@functools.lru_cache(maxsize=1)
def _parts(parts: ray.ObjectRef) -> Sequence[Part]:
    return ray.get(parts)
