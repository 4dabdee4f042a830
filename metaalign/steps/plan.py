"""Which examples make up each optimizer step, and how they are dealt to the rows of the workers.

A step is a set of examples that depends on (seed, epoch, step) alone. Budgets, rows and workers
change how the step is laid out, never which examples are in it. Reads lengths and shared prefixes,
no tokens.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from metaalign.errors import PlanError
from metaalign.steps.forest import Forest
from metaalign.steps.mixture import Mixture, mixed_visits
from metaalign.steps.packing import pack
from metaalign.steps.selection import Selection, ranges

Layout = Literal["tree", "single"]

Measure = Callable[[Selection, np.ndarray], Forest]
"""Returns the forest of the examples at some positions; item i is the i-th position."""

_ROUNDING = 1e-6
"""Rounding error of epochs times groups: the product may exceed a whole number by this much."""

LENGTH_MULTIPLE = 8
"""A row's length is a multiple of this unless a kernel needs a larger one, to limit the number of
distinct shapes."""


@dataclass(frozen=True)
class MicroLayout:
    """What the workers compute in one forward and backward pass, with the same shapes on all."""

    bins_by_rank: tuple[tuple[tuple[int, ...], ...], ...]
    """Per worker, per bin, positions in the selection. Under the tree layout a bin is one row;
    under the single layout it is one example, which takes a row for each of its sequences."""

    layout: Layout

    num_rows: int
    """Rows of each worker, dummies included."""

    num_targets: int
    """Targets of each worker, padding included."""

    length: int
    """Tokens of a row, padding included."""


@dataclass(frozen=True)
class Packing:
    """How a set of examples becomes micro-batches.

    Under the tree layout the size of a row is exact: the tokens of a step are compared before it
    is laid out, so a prefix that sequences of a row share counts once, also across examples. Only
    the check that each example fits uses an upper bound: the prompt and all responses.

    Raises:
        PlanError: an example is longer than a row, or has more sequences than a micro-batch.
    """

    selection: Selection
    measure: Measure
    budget: int
    """Maximum length of a row, in tokens."""
    rows: int
    """Maximum number of rows in a micro-batch of one worker."""
    layout: Layout
    length_multiple: int = LENGTH_MULTIPLE
    """A row's length is a multiple of this, unless the budget is shorter."""
    context: int | None = None
    """Context of the model, in tokens. A row of one sequence is not padded beyond it, since the
    padding there has positions of its own: some models fail beyond their last position or compute
    all tokens differently (dynamic RoPE). None sets no limit."""

    def __post_init__(self) -> None:
        single = self.layout == "single"
        lengths = self.selection.sequence_length if single else self.selection.tokens
        longest, over = int(lengths.max()), int((lengths > self.budget).sum())
        if over:
            what = "sequences" if single else "examples"
            raise PlanError(
                f"batch.budget ({self.budget}) is too short for {over} of {len(lengths)} {what};"
                f" the smallest budget that fits is {longest}"
                f" ({-(-longest // 128) * 128} as a multiple of 128)"
            )
        most = int(self.selection.response_count.max())
        if single and most > self.rows:
            raise PlanError(
                f"batch.rows ({self.rows}) is too small for one sequence a row: an example has"
                f" {most} responses, which must share a micro-batch; set batch.rows to at least"
                f" {most}"
            )

    def lay_out(self, positions: np.ndarray, world_size: int) -> list[MicroLayout]:
        """Micro-batches that together hold each of these positions once.

        Their numbers of rows differ little. Within one, the workers get similar numbers of targets.
        """
        if self.layout == "tree":
            bins, longest = self._tree_bins(positions, world_size)
            most = self.rows
        else:
            bins, longest = self._single_bins(positions)
            most = self.rows // int(self.selection.response_count.max())
        ends = np.cumsum(even_split(-(-len(bins) // world_size), most)) * world_size
        return [
            self._deal(bins[first:end], world_size, int(longest[first:end].max()))
            for first, end in zip([0, *ends.tolist()], ends.tolist(), strict=False)
        ]

    def _single_bins(self, positions: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """Bins of one example, longest first, and (bins,) tokens of each bin's longest sequence."""
        starts = self.selection.response_start[:-1]
        longest = np.maximum.reduceat(self.selection.sequence_length, starts)[positions]
        order = np.argsort(-longest, kind="stable")
        return list(positions[order, None]), longest[order]

    def _tree_bins(
        self, positions: np.ndarray, world_size: int
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """One bin a row, their number a multiple of the world size, and (bins,) tokens of each.

        Bins with the most targets come first, so that the bins of one micro-batch have similar
        numbers of targets.
        """
        forest = self.measure(self.selection, positions)
        row, sizes = pack(forest, budget=self.budget, multiple=world_size)
        targets = np.bincount(row, self.selection.targets[positions], len(sizes))
        by_row = np.argsort(row, kind="stable")
        ends = np.cumsum(np.bincount(row, minlength=len(sizes)))
        bins = np.split(positions[by_row], ends[:-1])
        order = np.argsort(-targets, kind="stable")
        return [bins[i] for i in order], sizes[order]

    def _deal(self, bins: list[np.ndarray], world_size: int, longest: int) -> MicroLayout:
        """One micro-batch: the bins are dealt to the workers back and forth, most targets first."""
        targets = np.array([self.selection.targets[members].sum() for members in bins])
        order = np.argsort(-targets, kind="stable")
        there_and_back = np.r_[0:world_size, world_size - 1 : -1 : -1]
        rank = np.resize(there_and_back, len(bins))
        dealt = [order[rank == worker] for worker in range(world_size)]
        height = np.ones(len(bins), dtype=np.int64)
        if self.layout == "single":
            height = self.selection.response_count[np.concatenate(bins)]
        length = min(self.budget, -(-longest // self.length_multiple) * self.length_multiple)
        if self.layout == "single" and self.context is not None:
            length = min(length, self.context)
        return MicroLayout(
            bins_by_rank=tuple(tuple(tuple(bins[i].tolist()) for i in own) for own in dealt),
            layout=self.layout,
            num_rows=max(int(height[own].sum()) for own in dealt),
            num_targets=max(int(targets[own].sum()) for own in dealt),
            length=length,
        )


def even_split(count: int, most: int) -> np.ndarray:
    """Split `count` into the fewest parts of at most `most`, as even as possible, larger first."""
    parts = -(-count // most)
    return count // parts + (np.arange(parts) < count % parts)


class Plan:
    """The steps of a run, numbered from 0. A run resumes at step s by calling `step(s)`.

    An epoch is a permutation of the groups; with a mixture it is the same number of visits, dealt
    to the sources by weight. A step takes whole groups until it holds at least
    `global_batch_size` examples, and may span two epochs. Only the last step may be short.

    Attributes:
        steps_per_epoch: Optimizer steps that the run's first epoch takes on its own.
    """

    def __init__(
        self,
        packing: Packing,
        *,
        global_batch_size: int,
        seed: int,
        epochs: float | None,
        max_steps: int | None = None,
        mixture: Mixture | None = None,
    ) -> None:
        """Args as in the settings `batch` and `length`.

        Args:
            mixture: The mixture of the packing's selection. A group with examples of two sources
                is split into one group for each.
        """
        self.packing = packing
        self.selection = selection = packing.selection
        keys = [selection.group] if mixture is None else [selection.group, mixture.source]
        _, group = np.unique(np.stack(keys), axis=1, return_inverse=True)
        self._members = np.argsort(group, kind="stable")
        sizes = np.bincount(group)
        self._member_start = np.append(0, np.cumsum(sizes))
        limits = [] if epochs is None else [max(1, math.ceil(epochs * len(sizes) - _ROUNDING))]
        limits += [] if max_steps is None else [max_steps * global_batch_size]
        assert limits, "a run has epochs, max_steps or both"
        self._visits = self._order(min(limits), seed, mixture)
        self._bounds = _bounds(sizes[self._visits], global_batch_size, max_steps)
        one_epoch = self._order(len(sizes), seed, mixture)
        self.steps_per_epoch = len(_bounds(sizes[one_epoch], global_batch_size, None)) - 1

    def _order(self, count: int, seed: int, mixture: Mixture | None) -> np.ndarray:
        """(count,) groups in the order of the run."""
        if mixture is None:
            return _visits(len(self._member_start) - 1, count, seed)
        source = mixture.source[self._members[self._member_start[:-1]]]
        return mixed_visits(source, mixture.share, count, seed)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return len(self._bounds) - 1

    def step(self, step: int) -> np.ndarray:
        """(n,) positions in the selection. One may occur twice if the step spans two epochs."""
        assert 0 <= step < self.num_steps
        groups = self._visits[self._bounds[step] : self._bounds[step + 1]]
        return self._members[ranges(self._member_start, groups)[0]]

    def positions(self) -> np.ndarray:
        """(n,) positions in the selection of all steps, in the order of the steps."""
        return self._members[ranges(self._member_start, self._visits[: self._bounds[-1]])[0]]

    def largest_group(self) -> np.ndarray:
        """(n,) positions in the selection of the group with the most examples."""
        first = int(np.diff(self._member_start).argmax())
        return self._members[slice(*self._member_start[first : first + 2])]

    def layout(self, step: int, world_size: int) -> list[MicroLayout]:
        """The micro-batches of a step. Every worker computes the same result."""
        return self.packing.lay_out(self.step(step), world_size)

    def visited(self) -> np.ndarray:
        """Positions in the selection that the run trains on at least once, ascending."""
        groups = np.unique(self._visits[: self._bounds[-1]])
        return np.sort(self._members[ranges(self._member_start, groups)[0]])

    def sweep(self, examples_per_step: int) -> "Sweep":
        """Every visited example exactly once, in store order, for the reference pass."""
        return Sweep(self.packing, self.visited(), examples_per_step)


@dataclass(frozen=True)
class Sweep:
    """Some examples, each exactly once, in a fixed order: for a reference pass or a measurement."""

    packing: Packing
    positions: np.ndarray
    """(n,) positions in the selection."""
    examples_per_step: int

    @property
    def selection(self) -> Selection:
        """The selection that the positions index."""
        return self.packing.selection

    @property
    def num_steps(self) -> int:
        """Number of parts of the sweep."""
        return -(-len(self.positions) // self.examples_per_step)

    def step(self, step: int) -> np.ndarray:
        """(n,) positions in the selection."""
        return self.positions[step * self.examples_per_step :][: self.examples_per_step]

    def layout(self, step: int, world_size: int) -> list[MicroLayout]:
        """The micro-batches of a step. Every worker computes the same result."""
        return self.packing.lay_out(self.step(step), world_size)


def _visits(num_groups: int, count: int, seed: int) -> np.ndarray:
    """(count,) groups in the order of the run: one permutation after another."""
    epochs = range(-(-count // num_groups))
    orders = [np.random.default_rng([seed, epoch]).permutation(num_groups) for epoch in epochs]
    return np.concatenate(orders)[:count]


def _bounds(sizes: np.ndarray, global_batch_size: int, max_steps: int | None) -> np.ndarray:
    """(steps + 1,) visits at which steps begin. A step ends once it holds enough examples."""
    held = np.cumsum(sizes)
    bounds, before = [0], 0
    while bounds[-1] < len(sizes) and len(bounds) - 1 != max_steps:
        end = int(np.searchsorted(held, before + global_batch_size)) + 1
        bounds.append(min(end, len(sizes)))
        before = int(held[bounds[-1] - 1])
    return np.array(bounds)
