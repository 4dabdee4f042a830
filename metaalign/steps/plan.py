"""Which examples make each optimizer step, and how they are dealt into rows over workers.

A step is a set of examples that (seed, epoch, step) decides, whatever the cluster: budgets, rows
and workers change how it is laid out, never what is in it. Knows lengths, no tokens.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from metaalign.errors import PlanError
from metaalign.steps.selection import Selection, ranges

Layout = Literal["tree", "single"]


@dataclass(frozen=True)
class MicroLayout:
    """What the workers compute in one forward and backward, equal in shape on all of them."""

    bins_by_rank: tuple[tuple[tuple[int, ...], ...], ...]
    """Per worker, per bin, positions in the selection. Under the tree layout a bin is one row;
    under the single layout it is one example, which takes a row for each of its sequences."""

    layout: Layout

    num_rows: int
    """Rows of each worker, dummies included."""

    num_targets: int
    """Targets of each worker, padding included."""


@dataclass(frozen=True)
class Packing:
    """How a set of examples becomes micro-batches.

    Raises:
        PlanError: an example is longer than a row, or has more sequences than a micro-batch.
    """

    selection: Selection
    budget: int
    """Length of a row, in tokens."""
    rows: int
    """Rows in a micro-batch of one worker, at most."""
    layout: Layout

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
        """Micro-batches that hold each of these positions once.

        Bins of like length share a micro-batch; within one, workers get like numbers of targets.
        """
        bins = self._tree_bins(positions) if self.layout == "tree" else self._single_bins(positions)
        per_worker = self.rows
        if self.layout == "single":
            per_worker //= int(self.selection.response_count.max())
        size = per_worker * world_size
        return [self._deal(bins[i : i + size], world_size) for i in range(0, len(bins), size)]

    def _single_bins(self, positions: np.ndarray) -> list[np.ndarray]:
        longest_first = np.argsort(-self.selection.tokens[positions], kind="stable")
        return list(positions[longest_first, None])

    def _tree_bins(self, positions: np.ndarray) -> list[np.ndarray]:
        """Rows, fullest first: a group keeps together, bundles of groups fill rows."""
        positions = positions[np.argsort(self.selection.group[positions], kind="stable")]
        _, group = np.unique(self.selection.group[positions], return_inverse=True)
        shared = self.selection.shared_length[positions]
        own = self.selection.tokens[positions] - shared
        prefix = np.zeros(group.max() + 1, dtype=np.int64)
        prefix[group] = shared
        bundle = group.copy()
        size = prefix + np.bincount(group, weights=own).astype(np.int64)
        for large in np.flatnonzero(size > self.budget):
            members = np.flatnonzero(group == large)
            part = first_fit_decreasing(own[members], self.budget - int(prefix[large]))
            bundle[members] = np.where(part == 0, large, len(size) + part - 1)
            parts = prefix[large] + np.bincount(part, weights=own[members]).astype(np.int64)
            size = np.append(size, parts[1:])
            size[large] = parts[0]
        row = first_fit_decreasing(size, self.budget)[bundle]
        by_row = np.argsort(row, kind="stable")
        bins = np.split(positions[by_row], np.cumsum(np.bincount(row))[:-1])
        fill = np.bincount(row, weights=self.selection.tokens[positions])
        return [bins[i] for i in np.argsort(-fill, kind="stable")]

    def _deal(self, bins: list[np.ndarray], world_size: int) -> MicroLayout:
        """One micro-batch: bins dealt back and forth, most targets first."""
        targets = np.array([self.selection.targets[members].sum() for members in bins])
        order = np.argsort(-targets, kind="stable")
        there_and_back = np.r_[0:world_size, world_size - 1 : -1 : -1]
        rank = np.resize(there_and_back, len(bins))
        dealt = [order[rank == worker] for worker in range(world_size)]
        height = np.ones(len(bins), dtype=np.int64)
        if self.layout == "single":
            height = self.selection.response_count[np.concatenate(bins)]
        return MicroLayout(
            bins_by_rank=tuple(tuple(tuple(bins[i].tolist()) for i in own) for own in dealt),
            layout=self.layout,
            num_rows=max(int(height[own].sum()) for own in dealt),
            num_targets=max(int(targets[own].sum()) for own in dealt),
        )


def first_fit_decreasing(sizes: np.ndarray, capacity: int) -> np.ndarray:
    """(n,) the bin of each item: the largest item first, each into the first bin with room."""
    room = np.full(len(sizes), capacity, dtype=np.int64)
    bins = np.empty(len(sizes), dtype=np.int64)
    for item in np.argsort(-sizes, kind="stable").tolist():
        bins[item] = chosen = (room >= sizes[item]).argmax()
        room[chosen] -= sizes[item]
    return bins


class Plan:
    """The steps of a run, numbered from 0: a run resumes at step s by asking for step s.

    An epoch is a permutation of the groups; epochs follow each other without a seam; a step takes
    whole groups until it holds at least `global_batch_size` examples. Only the last step may be
    short.
    """

    def __init__(
        self,
        selection: Selection,
        *,
        global_batch_size: int,
        budget: int,
        rows: int,
        layout: Layout,
        seed: int,
        epochs: float | None,
        max_steps: int | None = None,
    ) -> None:
        """Args as in the settings `batch` and `length`.

        Raises:
            PlanError: names the smallest budget that fits.
        """
        self.selection = selection
        self.packing = Packing(selection, budget=budget, rows=rows, layout=layout)
        _, group = np.unique(selection.group, return_inverse=True)
        self._members = np.argsort(group, kind="stable")
        sizes = np.bincount(group)
        self._member_start = np.append(0, np.cumsum(sizes))
        visits = [] if epochs is None else [max(1, round(epochs * len(sizes)))]
        visits += [] if max_steps is None else [max_steps * global_batch_size]
        assert visits, "a run has epochs, max_steps or both"
        self._visits = _visits(len(sizes), min(visits), seed)
        self._bounds = _bounds(sizes[self._visits], global_batch_size, max_steps)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return len(self._bounds) - 1

    def step(self, step: int) -> np.ndarray:
        """(n,) positions in the selection; one comes twice where two epochs meet in the step."""
        assert 0 <= step < self.num_steps
        groups = self._visits[self._bounds[step] : self._bounds[step + 1]]
        return self._members[ranges(self._member_start, groups)[0]]

    def layout(self, step: int, world_size: int) -> list[MicroLayout]:
        """The micro-batches of a step. Every worker computes the same."""
        return self.packing.lay_out(self.step(step), world_size)

    def visited(self) -> np.ndarray:
        """Positions in the selection that the run trains on at least once, ascending."""
        groups = np.unique(self._visits[: self._bounds[-1]])
        return np.sort(self._members[ranges(self._member_start, groups)[0]])

    def sweep(self, examples_per_step: int) -> "Sweep":
        """Every visited example exactly once, in store order: for the reference pass."""
        return Sweep(self.packing, self.visited(), examples_per_step)


@dataclass(frozen=True)
class Sweep:
    """Each of some examples exactly once, in a fixed order: a reference pass, a measurement."""

    packing: Packing
    positions: np.ndarray
    """(n,) positions in the selection."""
    examples_per_step: int

    @property
    def selection(self) -> Selection:
        """What the positions point into."""
        return self.packing.selection

    @property
    def num_steps(self) -> int:
        """Parts of the sweep."""
        return -(-len(self.positions) // self.examples_per_step)

    def step(self, step: int) -> np.ndarray:
        """(n,) positions in the selection."""
        return self.positions[step * self.examples_per_step :][: self.examples_per_step]

    def layout(self, step: int, world_size: int) -> list[MicroLayout]:
        """The micro-batches of a step. Every worker computes the same."""
        return self.packing.lay_out(self.step(step), world_size)


def _visits(num_groups: int, count: int, seed: int) -> np.ndarray:
    """(count,) groups in the order of the run: one permutation after the other."""
    epochs = range(-(-count // num_groups))
    orders = [np.random.default_rng([seed, epoch]).permutation(num_groups) for epoch in epochs]
    return np.concatenate(orders)[:count]


def _bounds(sizes: np.ndarray, global_batch_size: int, max_steps: int | None) -> np.ndarray:
    """(steps + 1,) visits where steps begin: a step ends once it holds enough examples."""
    held = np.cumsum(sizes)
    bounds, before = [0], 0
    while bounds[-1] < len(sizes) and len(bounds) - 1 != max_steps:
        end = int(np.searchsorted(held, before + global_batch_size)) + 1
        bounds.append(min(end, len(sizes)))
        before = int(held[bounds[-1] - 1])
    return np.array(bounds)
