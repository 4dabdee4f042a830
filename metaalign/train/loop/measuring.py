"""Measurements on the held-out examples of a run. Does not import Ray."""

import numpy as np

from metaalign.train.engines.interface import Engine
from metaalign.train.loop.results import pair_order
from metaalign.train.loop.sweep_losses import SweepLoss
from metaalign.train.loop.training_loop import Measurement, Metrics, measure
from metaalign.train.losses.pairs import PairLoss

LOG_RATIO = "absolute_log_ratio"
"""Mean absolute difference between a response's log-prob under the policy and under the reference,
in nats. Before the first step any value above 0 is rounding error."""


class HeldOut:
    """Measures a loss over the held-out examples. Keeps the last measurement and its step."""

    def __init__(self, engine: Engine, sweep_loss: SweepLoss) -> None:
        self._engine = engine
        self._sweep_loss = sweep_loss
        self._last: tuple[int, Measurement] | None = None

    def has_measured(self, step: int) -> bool:
        """Whether the last measurement was taken after this many steps."""
        return self._last is not None and self._last[0] == step

    def metrics(self, step: int) -> Metrics:
        """The metrics after this many steps. Every worker must call it."""
        return self._measure(step).metrics

    def order(self, step: int) -> dict[str, float] | None:
        """`pair_order` of the held-out pairs after this many steps; None without pairs."""
        loss = self._sweep_loss.loss
        if not isinstance(loss, PairLoss):
            return None
        return pair_order(loss.gaps(self._measure(step).logprobs))

    def _measure(self, step: int) -> Measurement:
        if self._last is None or self._last[0] != step:
            sweep, reader, loss, reference = self._sweep_loss
            found = measure(self._engine, sweep, reader, loss)
            if reference is not None:
                found.metrics[LOG_RATIO] = float(np.abs(found.logprobs - reference).mean())
            self._last = (step, found)
        return self._last[1]
