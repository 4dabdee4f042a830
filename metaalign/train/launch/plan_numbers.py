"""Counts of a plan: examples, steps, tokens, targets, fill. Does not import Ray."""

from dataclasses import dataclass

import numpy as np

from metaalign.steps.trees import build_rows
from metaalign.train.task import Materials

_TOKENS_LAID_OUT = 1_000_000
"""To measure the fill, rows are built for the first steps until they hold this many tokens."""


@dataclass(frozen=True)
class PlanNumbers:
    """Counts over a whole run. Only the fill is measured on its first steps."""

    examples: int
    """Number of distinct examples that can be trained on."""
    left_out: dict[str, int]
    """Number of examples of the training split that cannot be trained on, by reason as in
    `Selection.ledger`. No count is 0."""
    visits: int
    """Number of examples in all steps. An example in two epochs counts twice."""
    steps: int
    steps_per_epoch: int
    tokens: int
    """Tokens in all visits: the prompt of each example, once, and its responses. A prefix that
    several examples share counts once for each."""
    targets: int
    """Number of these tokens that the loss trains."""
    fill: float
    """Share of the rows' tokens that are neither padding nor dummies, in the first steps."""
    steps_laid_out: int
    """Number of first steps on which the fill is measured."""
    held_out: int
    """Number of held-out examples that are measured."""

    def metrics(self) -> dict[str, float]:
        """The values to track, by metric name."""
        return {
            "plan/examples": self.examples,
            "plan/examples_left_out": sum(self.left_out.values()),
            "plan/steps": self.steps,
            "plan/steps_per_epoch": self.steps_per_epoch,
            "plan/tokens": self.tokens,
            "plan/target_share": self.targets / self.tokens,
            "plan/fill": self.fill,
            "plan/held_out_examples": self.held_out,
        }


def count_plan(materials: Materials, world_size: int) -> PlanNumbers:
    """Count a plan, and build the rows of its first steps to measure the fill.

    Args:
        world_size: Number of workers that share the rows.
    """
    plan, selection = materials.plan, materials.plan.selection
    positions = plan.positions()
    fill, steps_laid_out = _fill(materials, world_size)
    return PlanNumbers(
        examples=len(selection),
        left_out={
            reason: count
            for reason, count in selection.ledger.items()
            if reason not in ("in", "out") and count
        },
        visits=len(positions),
        steps=plan.num_steps,
        steps_per_epoch=plan.steps_per_epoch,
        tokens=int(selection.tokens[positions].sum()),
        targets=int(selection.targets[positions].sum()),
        fill=fill,
        steps_laid_out=steps_laid_out,
        held_out=0 if materials.held_out is None else len(materials.held_out.positions),
    )


def _fill(materials: Materials, world_size: int) -> tuple[float, int]:
    """The fill of the first steps, and the number of these steps."""
    store, plan, _ = materials
    real = capacity = step = 0
    while step < plan.num_steps and capacity < _TOKENS_LAID_OUT:
        for micro in plan.layout(step, world_size):
            for rank in range(world_size):
                rows = build_rows(store, plan.selection, micro, rank)
                real, capacity = real + rows.real_tokens, capacity + np.size(rows.tokens)
        step += 1
    return real / capacity, step
