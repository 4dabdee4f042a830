"""The training loop. It takes a loss, and a function to call after each step.

It runs the same in one process, under torchrun and in Ray Train's workers. Does not import Ray.
Dimensions: T = targets, S = sequences, R = all used responses.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from metaalign.config.sections import OptimizerConfig
from metaalign.steps.plan import MicroLayout
from metaalign.steps.selection import Selection
from metaalign.steps.trees import Rows, build_rows, response_index
from metaalign.store.token_store import TokenStore
from metaalign.train.engines.interface import Engine, ForwardEngine
from metaalign.train.loop.nonfinite import FiniteCheck
from metaalign.train.losses.pairs import LossSum
from metaalign.train.model.policy import TensorRows, sequence_logprobs, to_tensors

LOSS = "loss"
GRAD_NORM = "grad_norm"
LEARNING_RATE = "learning_rate"
TOKENS = "tokens"
"""Tokens of the step without padding and dummies. A shared prefix counts once."""
TOKENS_PER_SECOND = "tokens_per_second"
WAITED = "waited_seconds"
"""Seconds spent waiting for rows, and on logs, measurements and checkpoints after the step
before."""
FILL = "fill"
"""Share of the rows' tokens that are neither padding nor dummies."""

READ_AHEAD = 2
"""Number of micro-batches that a thread builds in advance."""

Metrics = dict[str, float]
T = TypeVar("T")


class Loss(Protocol):
    """A loss over the log-probs of a micro-batch."""

    metrics: tuple[str, ...]
    """Names of the metrics in every `LossSum`."""

    def __call__(self, logprobs: Tensor, rows: Rows) -> LossSum:
        """Args: (T,) log-probabilities in nats, and the rows that hold their targets."""
        ...


@runtime_checkable
class LooksAhead(Protocol):
    """A loss that needs the log-probs of a whole step before its first micro-batch."""

    def look_ahead(
        self, parts: Iterable[tuple[Tensor, Rows]], total: Callable[[Tensor], Tensor]
    ) -> None:
        """Read a step in advance.

        Args:
            parts: This worker's micro-batches of the step, each (T,) log-probs without a gradient,
                with its rows.
            total: Returns the sum of a tensor over all workers.
        """
        ...


class Steps(Protocol):
    """A `Plan` or a `Sweep`, which document these."""

    @property
    def num_steps(self) -> int: ...
    def step(self, step: int) -> np.ndarray: ...
    def layout(self, step: int, world_size: int) -> list[MicroLayout]: ...


class MicroBatch(NamedTuple):
    """One worker's rows for one forward pass."""

    step: int
    weight: float
    """The step's global weight, by which the loop divides the loss."""
    last: bool
    """Whether this is the step's last micro-batch."""
    rows: Rows
    tensors: TensorRows


class Measurement(NamedTuple):
    """Metrics and log-probs of the held-out examples."""

    metrics: Metrics
    logprobs: np.ndarray
    """(R,) summed log-probability of every used response, float64, aligned with the selection."""


@dataclass(frozen=True)
class Reader:
    """Reads one worker's micro-batches of a plan over a selection of a store."""

    store: TokenStore
    selection: Selection

    def batches(self, steps: Steps, engine: ForwardEngine, start: int = 0) -> Iterator[MicroBatch]:
        """The micro-batches of every step from `start` on. A thread builds them in advance."""
        return read_ahead(self._build(steps, engine, start))

    def _build(self, steps: Steps, engine: ForwardEngine, start: int) -> Iterator[MicroBatch]:
        # The next step is planned while the current one is read: planning may take longer than a
        # micro-batch, but not longer than a step.
        numbers = range(start, steps.num_steps)
        layouts_by_step = (steps.layout(step, engine.world_size) for step in numbers)
        for step, layouts in zip(numbers, read_ahead(layouts_by_step, depth=1), strict=True):
            weight = float(self.selection.loss_weight[steps.step(step)].sum())
            for number, micro in enumerate(layouts):
                rows = build_rows(self.store, self.selection, micro, engine.rank)
                last = number == len(layouts) - 1
                yield MicroBatch(step, weight, last, rows, to_tensors(rows, engine.device))


def train(
    engine: Engine,
    plan: Steps,
    reader: Reader,
    loss: Loss,
    *,
    optimizer: OptimizerConfig,
    after_step: Callable[[int, Metrics], bool],
    start: int = 0,
) -> None:
    """Take the plan's optimizer steps from `start` on.

    Args:
        after_step: Logs, measures and saves. Called on every worker with the number of steps taken
            and the step's metrics. Returns whether to stop, the same on all workers.

    Raises:
        TrainingError: the loss or the gradient is not finite. The message names the step, the
            workers and the examples.
    """
    totals = Totals(loss.metrics, engine.device)
    finite_check = FiniteCheck(engine, reader.store, reader.selection)
    watch = Stopwatch()
    clock = time.perf_counter()
    for batch in look_ahead(engine, watch.over(reader.batches(plan, engine, start)), loss):
        logprobs = engine.forward(batch.tensors, last=batch.last)
        part = loss(logprobs, batch.rows)
        engine.backward(part.value / batch.weight)
        totals.add(part, batch)
        finite_check.record(batch.rows, logprobs, part.value)
        if not batch.last:
            continue
        learning_rate = learning_rate_at(batch.step, plan.num_steps, optimizer)
        grad_norm = float(engine.step(learning_rate))
        metrics = totals.take(engine, batch.weight)
        metrics |= {GRAD_NORM: grad_norm, LEARNING_RATE: learning_rate}
        positions = plan.step(batch.step)
        finite_check.check(batch.step, positions, loss=metrics[LOSS], grad_norm=grad_norm)
        done = time.perf_counter()
        metrics |= {TOKENS_PER_SECOND: metrics[TOKENS] / (done - clock), WAITED: watch.take()}
        if after_step(batch.step + 1, metrics):
            return
        clock = time.perf_counter()
        watch.seconds += clock - done


def measure(engine: ForwardEngine, steps: Steps, reader: Reader, loss: Loss | None) -> Measurement:
    """Compute the loss and its metrics over all examples of `steps`, and the responses' log-probs.

    Args:
        loss: None computes only the log-probs.
    """
    selection = reader.selection
    totals = Totals(loss.metrics if loss else (), engine.device)
    everything = np.arange(len(selection.response))
    logprobs = torch.zeros(len(everything), dtype=torch.float64, device=engine.device)
    batches = look_ahead(engine, reader.batches(steps, engine), loss)
    for batch, values in forward_only(engine, batches):
        put_sequences(logprobs, everything, selection, batch, values)
        if loss is not None:
            totals.add(loss(values, batch.rows), batch)
    visited = np.concatenate([steps.step(step) for step in range(steps.num_steps)])
    weight = float(selection.loss_weight[visited].sum())
    metrics = {}
    if loss is not None:
        means = totals.take(engine, weight)
        metrics = {name: means[name] for name in (LOSS, *loss.metrics)}
    return Measurement(metrics, engine.sum(logprobs).cpu().numpy())


def forward_only(
    engine: ForwardEngine, batches: Iterable[MicroBatch]
) -> Iterator[tuple[MicroBatch, Tensor]]:
    """Yield every micro-batch with the (T,) log-probs of its targets, without a gradient."""
    for batch in batches:
        with torch.no_grad():
            values = engine.forward(batch.tensors)
        yield batch, values


def look_ahead(
    engine: ForwardEngine, batches: Iterator[MicroBatch], loss: Loss | None
) -> Iterator[MicroBatch]:
    """Yield the same micro-batches. If the loss is a `LooksAhead`, call its `look_ahead` before
    each step, at the cost of a second forward pass."""
    if not isinstance(loss, LooksAhead):
        yield from batches
        return
    for _, group in groupby(batches, key=lambda batch: batch.step):
        step = list(group)
        parts = ((values, batch.rows) for batch, values in forward_only(engine, step))
        loss.look_ahead(parts, engine.sum)
        yield from step


def put_sequences(
    target: Tensor, responses: np.ndarray, selection: Selection, batch: MicroBatch, logprobs: Tensor
) -> None:
    """Sum a micro-batch's log-probs by response and write the sums into `target`.

    Args:
        target: (n,) float64, written in place.
        responses: (n,) indices of the responses of `target` among all used ones, ascending.
        logprobs: (T,) in nats.
    """
    rows = batch.rows
    if not rows.num_sequences:
        return
    sequence = torch.as_tensor(rows.sequence, device=logprobs.device)
    sums = sequence_logprobs(logprobs, sequence, rows.num_sequences)
    place = np.searchsorted(responses, response_index(selection, rows))
    target[torch.as_tensor(place, device=logprobs.device)] = sums


def learning_rate_at(step: int, num_steps: int, config: OptimizerConfig) -> float:
    """Linear warmup to the peak, then decay to `final_ratio` times the peak at the last step.

    Args:
        step: Counted from 0.
    """
    warmup = math.ceil(config.warmup_ratio * num_steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    along = (step - warmup) / max(1, num_steps - 1 - warmup)
    fall = {
        "cosine": 0.5 * (1 + math.cos(math.pi * along)),
        "linear": 1 - along,
        "constant": 1.0,
    }[config.schedule]
    floor = config.final_ratio if config.schedule != "constant" else 1.0
    return config.learning_rate * (floor + (1 - floor) * fall)


class Stopwatch:
    """Adds up the seconds spent outside the step itself."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def over(self, items: Iterator[T]) -> Iterator[T]:
        """Yield the items in order, and add the seconds spent waiting for each."""
        end: Any = object()
        while True:
            began = time.perf_counter()
            item = next(items, end)
            self.seconds += time.perf_counter() - began
            if item is end:
                return
            yield item

    def take(self) -> float:
        """Return the seconds so far, and reset them to 0."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


class Totals:
    """Sums over the micro-batches of a step, reduced over the workers once per step."""

    def __init__(self, names: tuple[str, ...], device: torch.device) -> None:
        self._names = (LOSS, *names)
        self._sums = torch.zeros(len(self._names) + 2, dtype=torch.float64, device=device)

    def add(self, part: LossSum, batch: MicroBatch) -> None:
        """Add a micro-batch, without waiting for the device."""
        sums = [part.value.detach(), *(part.metrics[name] for name in self._names[1:])]
        self._sums[:-2] += torch.stack([value.double() for value in sums])
        self._sums[-2] += batch.rows.real_tokens
        self._sums[-1] += batch.rows.tokens.size

    def take(self, engine: ForwardEngine, weight: float) -> Metrics:
        """Return the weighted means over all workers, and reset the sums to 0."""
        *sums, tokens, capacity = engine.sum(self._sums).tolist()
        self._sums.zero_()
        means = {name: value / weight for name, value in zip(self._names, sums, strict=True)}
        return {**means, TOKENS: tokens, FILL: tokens / capacity}


def read_ahead(items: Iterator[T], depth: int = READ_AHEAD) -> Iterator[T]:
    """Yield the items in order. A thread produces up to `depth` items in advance."""
    end: Any = object()
    with ThreadPoolExecutor(1) as pool:
        pending = deque(pool.submit(next, items, end) for _ in range(depth))
        while (item := pending.popleft().result()) is not end:
            pending.append(pool.submit(next, items, end))
            yield item
