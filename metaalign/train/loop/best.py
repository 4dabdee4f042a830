"""Which measurement was the best, and whether to go on. Knows no engine and no Ray."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

HIGHER_IS_BETTER = {"loss": False, "reward_accuracy": True, "reward_margin": True}
"""The held-out metrics that can choose a checkpoint; those of `config.BestMetric`."""


@dataclass(frozen=True)
class Best:
    """The best measurement of a metric so far."""

    metric: str
    value: float
    step: int
    """Optimizer steps taken before it."""
    measured_since: int = 0
    """Measurements after it, none of which was better."""

    def to_plain(self) -> dict[str, Any]:
        """What a checkpoint and result.json keep."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any] | None) -> "Best | None":
        """The inverse of `to_plain`."""
        return None if plain is None else cls(**plain)

    def tired(self, patience: int | None) -> bool:
        """Whether so many measurements were no better. None is never tired."""
        return patience is not None and self.measured_since >= patience


def next_best(best: Best | None, metric: str, value: float, step: int) -> Best:
    """The best after one more measurement. An equal value is no better, nor is NaN.

    Where the metric is another than before, the search starts anew.
    """
    sign = 1 if HIGHER_IS_BETTER[metric] else -1
    first = best is None or best.metric != metric or math.isnan(best.value)
    if best is None or first or sign * value > sign * best.value:
        return Best(metric, value, step)
    return Best(metric, best.value, best.step, best.measured_since + 1)
