"""What a plan comes to, in numbers: examples, steps, tokens, targets, fill. Knows no Ray."""

from dataclasses import dataclass

import numpy as np

from metaalign.steps.trees import build_rows
from metaalign.train.task import Materials

_TOKENS_LAID_OUT = 1_000_000
"""The steps whose rows are built to measure the fill end with the one that reaches this."""


@dataclass(frozen=True)
class PlanNumbers:
    """Counts over a whole run, but for the fill."""

    examples: int
    """Different examples that can be trained on."""
    left_out: dict[str, int]
    """Examples of the training split that cannot, by reason as in `Selection.ledger`; none is 0."""
    visits: int
    """Examples of all steps; one that two epochs visit counts twice."""
    steps: int
    steps_per_epoch: int
    tokens: int
    """Of all visits: each example's prompt, once, and its responses. A prefix that several examples
    share counts in each."""
    targets: int
    """Of these tokens, those that the loss is taken on."""
    fill: float
    """Share of the rows' tokens that are neither padding nor dummies, in the first steps."""
    steps_laid_out: int
    """How many first steps the fill is measured on."""
    held_out: int
    """Examples that are measured."""

    def metrics(self) -> dict[str, float]:
        """What is tracked, by the name of its curve."""
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
    """Count a plan, and lay its first steps out in rows.

    Args:
        world_size: Workers among which the rows are dealt.
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
    """The fill of the first steps, and how many steps those are."""
    store, plan, _ = materials
    real = room = step = 0
    while step < plan.num_steps and room < _TOKENS_LAID_OUT:
        for micro in plan.layout(step, world_size):
            for rank in range(world_size):
                rows = build_rows(store, plan.selection, micro, rank)
                real, room = real + rows.real_tokens, room + np.size(rows.tokens)
        step += 1
    return real / room, step
