"""SFT and preference losses. Tensors in, tensors out: no model, no config, no Ray.

Every loss is called as `loss(logprobs, rows) -> LossSum`: sums over a micro-batch, which the loop
divides by the step's global weight, the sum of `selection.loss_weight[plan.step(s)]`.

Dimensions: T = targets, S = sequences, P = pairs.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from metaalign.data.columns import Columns
from metaalign.steps.selection import Selection, ranges
from metaalign.steps.trees import Rows
from metaalign.train.logprobs import sequence_logprobs

REWARD_ACCURACY = "reward_accuracy"
"""Share of the pairs whose chosen response has the larger reward; a tie counts half."""

REWARD_MARGIN = "reward_margin"
"""Mean of the chosen reward minus the rejected."""

CHOSEN_REWARD = "chosen_reward"
"""Mean of beta times the policy's log-ratio to the reference, in nats, as is the next."""

REJECTED_REWARD = "rejected_reward"


class LossSum(NamedTuple):
    """Sums over a micro-batch; divided by the step's global weight they are weighted means."""

    value: Tensor
    """Scalar, in nats."""

    metrics: dict[str, Tensor]
    """Scalars by name, without gradients; the names are the same on every call."""


def sft_loss(*, logprobs: Tensor, weight: Tensor) -> Tensor:
    """Weighted negative log-likelihood, summed.

    Args:
        logprobs: (T,) in nats.
        weight: (T,) of the target's example; 0 for padding.

    Returns:
        Scalar; the caller divides by the step's global sum of weights.
    """
    return -(weight * logprobs).sum()


def dpo_loss(
    *,
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
) -> Tensor:
    """Direct preference optimization, https://arxiv.org/abs/2305.18290, equation 7.

    Args:
        policy_chosen: (P,) summed log-probabilities in nats, as are the next three.
        beta: Strength of the pull towards the reference. Larger stays closer.

    Returns:
        (P,) one loss a pair.
    """
    policy = policy_chosen - policy_rejected
    reference = reference_chosen - reference_rejected
    return -functional.logsigmoid(beta * (policy - reference))


class Pairs(NamedTuple):
    """Every strictly ordered pair of the sequences of a micro-batch."""

    chosen: np.ndarray
    """(P,) slots."""
    rejected: np.ndarray
    """(P,) slots."""
    share: np.ndarray
    """(P,) float64: one over the pairs of the same example, which together weigh 1."""


def ordered_slots(occurrence: np.ndarray, score: np.ndarray) -> Pairs:
    """Pair what belongs to one example and differs in score.

    Args:
        occurrence: (S,) number of the example, ascending.
        score: (S,) larger is better.
    """
    count = np.bincount(occurrence)
    chosen = np.repeat(np.arange(len(score)), count[occurrence])
    rejected, _ = ranges(np.append(0, np.cumsum(count)), occurrence)
    better = score[chosen] > score[rejected]
    chosen, rejected = chosen[better], rejected[better]
    pairs = np.bincount(occurrence[chosen], minlength=len(count))
    return Pairs(chosen, rejected, 1.0 / pairs[occurrence[chosen]])


class SFTLoss:
    """Negative log-probability of every target, by the weight of its example."""

    metrics: tuple[str, ...] = ()

    def __init__(self, selection: Selection, columns: Columns) -> None:
        self._weight = columns.weight[selection.example]

    def __call__(self, logprobs: Tensor, rows: Rows) -> LossSum:
        """Args: (T,) log-probabilities in nats, and the rows that they are of."""
        weight = np.append(self._weight[rows.position], 0.0)[rows.sequence]
        return LossSum(sft_loss(logprobs=logprobs, weight=_like(logprobs, weight)), {})


class DPOLoss:
    """DPO over every strictly ordered pair of an example, averaged over the example's pairs.

    With an `sft_weight`, beside it the negative log-probability of the best response, divided by
    its target tokens, as in https://arxiv.org/abs/2404.19733, equation 1.
    """

    metrics: tuple[str, ...] = (REWARD_ACCURACY, REWARD_MARGIN, CHOSEN_REWARD, REJECTED_REWARD)

    def __init__(
        self,
        selection: Selection,
        columns: Columns,
        reference: np.ndarray,
        *,
        beta: float,
        sft_weight: float = 0.0,
    ) -> None:
        """Gather what the loss needs to know of every used response.

        Args:
            reference: (sum K,) summed log-probabilities in nats, aligned with
                `selection.response`. What the rows never show may be NaN.
        """
        assert reference.shape == selection.response.shape
        first = np.repeat(columns.response_start[selection.example], selection.response_count)
        self._selection = selection
        self._score = columns.order_score[first + selection.response]
        self._weight = columns.weight[selection.example]
        self._reference = reference
        self._beta = beta
        self._sft_weight = sft_weight

    def __call__(self, logprobs: Tensor, rows: Rows) -> LossSum:
        """Args: (T,) log-probabilities in nats, and the rows that they are of."""
        flat, pairs = self._pairs(rows)
        policy = sequence_logprobs(logprobs, _like(logprobs, rows.sequence), rows.num_sequences)
        weight = _like(policy, pairs.share * self._weight[rows.position[pairs.chosen]])
        reference = _like(policy, self._reference[flat])
        losses = dpo_loss(
            policy_chosen=policy[pairs.chosen],
            policy_rejected=policy[pairs.rejected],
            reference_chosen=reference[pairs.chosen],
            reference_rejected=reference[pairs.rejected],
            beta=self._beta,
        )
        value = (weight * losses).sum()
        if self._sft_weight:
            share = self._best_share(flat, rows)
            value = value - self._sft_weight * (_like(policy, share) * policy).sum()
        reward = self._beta * (policy.detach() - reference)
        chosen, rejected = reward[pairs.chosen], reward[pairs.rejected]
        by_pair = {
            REWARD_ACCURACY: (chosen > rejected) + 0.5 * (chosen == rejected),
            REWARD_MARGIN: chosen - rejected,
            CHOSEN_REWARD: chosen,
            REJECTED_REWARD: rejected,
        }
        sums = {name: (weight * values).sum() for name, values in by_pair.items()}
        return LossSum(value, sums)

    def _pairs(self, rows: Rows) -> tuple[np.ndarray, Pairs]:
        """(S,) places in the arrays over used responses, and the pairs of the micro-batch."""
        count = np.bincount(rows.occurrence)
        within = np.arange(rows.num_sequences) - (np.cumsum(count) - count)[rows.occurrence]
        flat = self._selection.response_start[rows.position] + within
        assert (self._selection.response[flat] == rows.response).all()
        return flat, ordered_slots(rows.occurrence, self._score[flat])

    def _best_share(self, flat: np.ndarray, rows: Rows) -> np.ndarray:
        """(S,) weight per target token of each example's best response, the first of equals."""
        by_score = np.lexsort((-self._score[flat], rows.occurrence))
        _, first = np.unique(rows.occurrence, return_index=True)
        best = by_score[first]
        share = np.zeros(rows.num_sequences)
        share[best] = self._weight[rows.position[best]]
        return share / self._selection.target_count[flat]


def _like(tensor: Tensor, values: np.ndarray) -> Tensor:
    """The values on the tensor's device; real numbers in its precision."""
    moved = torch.from_numpy(values).to(tensor.device)
    return moved.to(tensor.dtype) if moved.is_floating_point() else moved
