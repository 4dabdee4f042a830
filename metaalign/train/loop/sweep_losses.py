"""A task's loss over a selection, and the reference passes that it needs. Does not import Ray.

Dimensions: R = all used responses of the selection, M = references.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np

from metaalign.config import DPOConfig
from metaalign.steps.plan import Sweep
from metaalign.store.token_store import TokenStore
from metaalign.train.engines.interface import Engine, ForwardEngine
from metaalign.train.engines.starting import OpenReference
from metaalign.train.loop.progress import ProgressBar
from metaalign.train.loop.reference_pass import reference_fingerprint, reference_logprobs
from metaalign.train.loop.training_loop import Loss, Reader
from metaalign.train.losses.kto import KTOLoss
from metaalign.train.losses.pairs import PairLoss, RankingLoss, SFTLoss
from metaalign.train.task import Task

_FORMS = {"pairs": PairLoss, "ranking": RankingLoss, "single": KTOLoss}
"""The class that gathers a loss's inputs, by `config.loss.kind.data`."""


class SweepLoss(NamedTuple):
    """A loss over a selection, with the sweep and reader to compute it."""

    sweep: Sweep
    reader: Reader
    loss: Loss
    reference: np.ndarray | None
    """(R,) log-probs of all used responses under the initial model, in nats; None if the loss uses
    no reference."""


@dataclass(frozen=True)
class SweepLosses:
    """Builds the loss over any selection of a task. Every worker must make the same calls."""

    task: Task
    engine: Engine
    """Holds the policy with its initial weights, which is the first reference."""
    store: TokenStore
    open_reference: OpenReference
    """Opens an engine over a further reference, the initial model of the task that it gets."""

    def of(self, sweep: Sweep) -> SweepLoss:
        """The loss over the sweep's selection. Runs the reference passes that the loss needs."""
        config, selection, columns = self.task.config, sweep.selection, self.store.columns
        reader = Reader(self.store, selection)
        if not isinstance(config, DPOConfig):
            return SweepLoss(sweep, reader, SFTLoss(selection, columns), None)
        kind = config.loss.kind
        references = self._references(sweep, reader) if kind.has_reference else None
        loss = _FORMS[kind.data](selection, columns, references, config.loss)
        return SweepLoss(sweep, reader, loss, None if references is None else references[0])

    def _references(self, sweep: Sweep, reader: Reader) -> np.ndarray:
        """(M, R) log-probs in nats under the initial model and each further reference, in turn."""
        found = [self._reference(sweep, reader, self.task.weights, None)]
        for reference in self.task.references:
            task = replace(self.task, initial=reference.source, weights=reference.weights)
            other = partial(self.open_reference, task, self.engine.device)
            found.append(self._reference(sweep, reader, task.weights, other))
        return np.stack(found)

    def _reference(
        self,
        sweep: Sweep,
        reader: Reader,
        weights: str,
        other: Callable[[], AbstractContextManager[ForwardEngine]] | None,
    ) -> np.ndarray:
        fingerprint = reference_fingerprint(
            sweep,
            weights=weights,
            dtype=self.task.dtype,
            store=self.store.fingerprint,
            template=self.store.manifest["template_fingerprint"],
        )
        bar = ProgressBar("reference", sweep.num_steps)
        return reference_logprobs(
            self.engine,
            sweep,
            reader,
            self.store.path / "reference" / fingerprint,
            other=other,
            progress=bar.update if self.engine.rank == 0 else None,
        )
