"""Ends the run if the loss or gradient is not finite, with an error that names the examples.

Dimensions: T = targets, W = workers, E = examples of the step.
"""

import math

import numpy as np
import torch
from torch import Tensor

from metaalign.errors import TrainingError
from metaalign.steps.selection import Selection
from metaalign.steps.trees import Rows
from metaalign.store.token_store import TokenStore
from metaalign.train.engines.agreement import met_by_all
from metaalign.train.engines.interface import Engine

MAX_NAMED = 8
"""Largest number of examples that one message names."""


class FiniteCheck:
    """Keeps the log-probs and losses of one step's micro-batches, to find the examples at fault.

    It does not wait for the device unless there is an error.
    """

    def __init__(self, engine: Engine, store: TokenStore, selection: Selection) -> None:
        self._engine = engine
        self._store = store
        self._selection = selection
        self._seen: list[tuple[Rows, Tensor, Tensor]] = []

    def record(self, rows: Rows, logprobs: Tensor, loss: Tensor) -> None:
        """Keep a micro-batch's (T,) log-probs and its loss, a scalar."""
        self._seen.append((rows, logprobs.detach(), loss.detach()))

    def check(self, step: int, positions: np.ndarray, *, loss: float, grad_norm: float) -> None:
        """Check the numbers of a finished step. Every worker must call it with equal arguments.

        Args:
            positions: Positions of the step's examples in the selection.

        Raises:
            TrainingError: `loss` or `grad_norm` is not finite. The message names the step, the
                workers and the source rows of the examples.
        """
        seen, self._seen = self._seen, []
        if math.isfinite(loss) and math.isfinite(grad_norm):
            return
        positions = np.unique(positions)
        by_worker = self._by_worker(seen, positions)
        where = ". ".join(
            f"Not finite on worker {worker}: {self._name_examples(positions[found])}"
            for worker, found in enumerate(by_worker)
            if found.any()
        )
        where = where or (
            f"Every log-prob was finite; the step's examples: {self._name_examples(positions)}"
        )
        raise met_by_all(
            TrainingError(
                f"step {step}: the loss is {loss} and the gradient norm {grad_norm}. {where}. Look "
                "at these examples, lower optimizer.learning_rate, or set optimizer.max_grad_norm"
            )
        )

    def _by_worker(
        self, seen: list[tuple[Rows, Tensor, Tensor]], positions: np.ndarray
    ) -> np.ndarray:
        """(W, E) bool: whether a worker computed log-probs of an example that are not finite."""
        found = np.zeros((self._engine.world_size, len(positions)))
        for rows, logprobs, loss in seen:
            suspects = _suspects(rows, logprobs, loss)
            found[self._engine.rank, np.searchsorted(positions, suspects)] = 1
        total = self._engine.sum(torch.from_numpy(found).to(self._engine.device))
        return total.cpu().numpy() > 0

    def _name_examples(self, positions: np.ndarray) -> str:
        columns = self._store.columns
        examples = self._selection.example[positions[:MAX_NAMED]]
        names = [f"{columns.source_file[i]}, row {columns.source_row[i]}" for i in examples]
        more = len(positions) - len(names)
        return "; ".join(names) + (f" and {more} more" if more else "")


def _suspects(rows: Rows, logprobs: Tensor, loss: Tensor) -> np.ndarray:
    """Positions of the examples with a log-prob that is not finite. If only the loss is not finite,
    the positions of all examples."""
    bad = ~torch.isfinite(logprobs).cpu().numpy()
    slots = np.unique(rows.sequence[bad])
    slots = slots[slots < rows.num_sequences]  # padding has the next slot
    if len(slots) or torch.isfinite(loss):
        return rows.position[slots]
    return rows.position
