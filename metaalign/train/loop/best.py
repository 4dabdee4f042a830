"""The best measurement so far, and early stopping. Imports neither an engine nor Ray."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

HIGHER_IS_BETTER = {"loss": False, "reward_accuracy": True, "reward_margin": True}
"""The held-out metrics that can select a checkpoint: those of `config.BestMetric`."""


@dataclass(frozen=True)
class Best:
    """The best measurement of a metric so far."""

    metric: str
    value: float
    step: int
    """Optimizer steps taken before it."""
    measured_since: int = 0
    """Number of later measurements, none of them better."""

    def to_plain(self) -> dict[str, Any]:
        """A JSON object for checkpoints and result.json."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any] | None) -> "Best | None":
        """The inverse of `to_plain`."""
        return None if plain is None else cls(**plain)

    def patience_exhausted(self, patience: int | None) -> bool:
        """Whether the last `patience` measurements were no better. Never true if it is None."""
        return patience is not None and self.measured_since >= patience


def next_best(best: Best | None, metric: str, value: float, step: int) -> Best:
    """The best after one more measurement. An equal value or NaN is not better.

    If the metric has changed, the new measurement is the best.
    """
    sign = 1 if HIGHER_IS_BETTER[metric] else -1
    first = best is None or best.metric != metric or math.isnan(best.value)
    if best is None or first or sign * value > sign * best.value:
        return Best(metric, value, step)
    return Best(metric, best.value, best.step, best.measured_since + 1)
