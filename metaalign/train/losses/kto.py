"""KTO, the loss over single responses, each desirable or undesirable. Called like those of `pairs`.

Dimensions: T = targets, S = sequences of a micro-batch, R = all used responses.
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from metaalign.config.preference_losses import PreferenceLossConfig
from metaalign.steps.selection import Selection
from metaalign.steps.trees import Rows, response_index
from metaalign.store.columns import Columns
from metaalign.train.losses.pairs import LossSum, like, loss_function
from metaalign.train.model.policy import sequence_logprobs

DESIRABLE_REWARD = "desirable_reward"
"""Mean over a step's desirable responses of beta times the log-ratio to the reference; 0 if the
step has none."""

UNDESIRABLE_REWARD = "undesirable_reward"
"""The same for the undesirable responses."""

REFERENCE_POINT = "reference_point"
"""z0 of the step: the log-ratio, in nats, above which a response counts as a gain."""


class KTOLoss:
    """KTO, averaged over the marked responses of each example.

    `look_ahead` computes z0, the weighted mean log-ratio of the mismatched responses of the whole
    step, on all workers. Each example has one mismatched response, which is used for z0 alone.

    If `sft_weight` is set, the loss also has an SFT term: the negative log-probability of the
    desirable responses, each divided by its number of target tokens.
    """

    metrics: tuple[str, ...] = (DESIRABLE_REWARD, UNDESIRABLE_REWARD, REFERENCE_POINT)

    def __init__(
        self,
        selection: Selection,
        columns: Columns,
        references: np.ndarray,
        config: PreferenceLossConfig,
    ) -> None:
        """Gather label, weight and reference log-prob of every used response.

        Args:
            references: (1, R) summed log-probabilities in nats, aligned with
                `selection.response`. NaN is allowed for responses that no row contains.
        """
        (reference,) = references
        assert reference.shape == selection.response.shape
        own = columns.response_start[selection.response_row] + selection.response
        example_weight = columns.weight[selection.example]
        marked = selection.response_count - 1
        mismatched = selection.mismatched
        self._selection = selection
        self._reference = reference
        self._desirable = columns.desirable[own] == 1
        self._mismatched = mismatched
        self._weight = np.repeat(example_weight / marked, selection.response_count) * ~mismatched
        self._point_weight = np.repeat(example_weight, selection.response_count) * mismatched
        self._beta, self._sft_weight = config.beta, config.sft_weight
        self._function = loss_function(config)
        self._step: Tensor | None = None

    def look_ahead(
        self, parts: Iterable[tuple[Tensor, Rows]], total: Callable[[Tensor], Tensor]
    ) -> None:
        """Compute the reference point of the next step, and the weights of its metrics.

        Args:
            parts: This worker's micro-batches of the step, each (T,) log-probs with its rows.
            total: Returns the sum of a tensor over all workers.
        """
        sums = [self._step_sums(logprobs, rows) for logprobs, rows in parts]
        gained, weight, good, bad = total(torch.stack(sums).sum(0))
        self._step = torch.stack([(gained / weight).clamp(min=0), weight, good, bad])

    def _step_sums(self, logprobs: Tensor, rows: Rows) -> Tensor:
        """(4,) float64: the weighted sum of the mismatched log-ratios, and the sums of the weights
        of the mismatched, desirable and undesirable responses."""
        ratio, flat, _ = self._ratios(logprobs, rows)
        point, weight = (like(ratio, each[flat]) for each in (self._point_weight, self._weight))
        good = like(ratio, self._desirable[flat])
        parts = [point * ratio, point, weight * good, weight * ~good]
        return torch.stack([part.sum() for part in parts])

    def __call__(self, logprobs: Tensor, rows: Rows) -> LossSum:
        """Args: (T,) log-probabilities in nats, and the rows that hold their targets."""
        assert self._step is not None, "look_ahead must be called before the step"
        reference_point, step_weight, good_weight, bad_weight = self._step
        ratio, flat, policy = self._ratios(logprobs, rows)
        weight, good = like(ratio, self._weight[flat]), like(ratio, self._desirable[flat])
        by_response = self._function(ratio=ratio, desirable=good, reference_point=reference_point)
        value = (weight * by_response).sum()
        if self._sft_weight:
            share = weight * good / like(ratio, self._selection.target_count[flat])
            value = value - self._sft_weight * (share * policy).sum()
        reward = self._beta * ratio.detach() * weight
        # The loop divides by the step's weight, but these two are means over one label only.
        sums = {
            DESIRABLE_REWARD: (reward * good).sum() * _safe_ratio(step_weight, good_weight),
            UNDESIRABLE_REWARD: (reward * ~good).sum() * _safe_ratio(step_weight, bad_weight),
            REFERENCE_POINT: weight.sum() * reference_point,
        }
        return LossSum(value, sums)

    def _ratios(self, logprobs: Tensor, rows: Rows) -> tuple[Tensor, np.ndarray, Tensor]:
        """(S,) log-ratios, indices among all used responses, and the policy's log-probs."""
        flat = response_index(self._selection, rows)
        policy = sequence_logprobs(logprobs, like(logprobs, rows.sequence), rows.num_sequences)
        return policy - like(policy, self._reference[flat]), flat, policy


def _safe_ratio(whole: Tensor, part: Tensor) -> Tensor:
    return torch.where(part > 0, whole / part, 0.0)
