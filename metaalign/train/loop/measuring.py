"""What is measured on the held-out examples of a run. Knows no Ray."""

import numpy as np

from metaalign.train.engines.interface import Engine
from metaalign.train.loop.results import pair_order
from metaalign.train.loop.sweep_losses import SweepLoss
from metaalign.train.loop.training_loop import Measurement, Metrics, measure
from metaalign.train.losses.pairs import PairLoss

LOG_RATIO = "absolute_log_ratio"
"""Mean distance of a response's log-prob from the reference's, in nats: what rounding makes of 0
at the start."""


class HeldOut:
    """Measures a loss over the held-out examples. Keeps the last measurement, with its step."""

    def __init__(self, engine: Engine, sweep_loss: SweepLoss) -> None:
        self._engine = engine
        self._sweep_loss = sweep_loss
        self._last: tuple[int, Measurement] | None = None

    def knows(self, step: int) -> bool:
        """Whether the state after this many steps has been measured."""
        return self._last is not None and self._last[0] == step

    def metrics(self, step: int) -> Metrics:
        """The metrics of the state after this many steps. Every worker calls it."""
        return self._measure(step).metrics

    def order(self, step: int) -> dict[str, float] | None:
        """The order of the held-out pairs after this many steps; None where the loss has none."""
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
