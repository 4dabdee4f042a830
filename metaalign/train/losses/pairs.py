"""SFT, pair and ranking losses as the loop calls them: over the log-probs of a micro-batch.

Every loss is called as `loss(logprobs, rows) -> LossSum`. It returns sums over a micro-batch, which
the loop divides by the step's global weight, the sum of `selection.loss_weight[plan.step(s)]`. The
formulas are in `formulas`; the loss over single responses (KTO) is in `kto`.

Dimensions: T = targets, S = sequences of a micro-batch, P = pairs, R = all used responses,
M = references.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from metaalign.config.preference_losses import PreferenceLossConfig
from metaalign.steps.selection import Selection, ranges
from metaalign.steps.trees import Rows, response_index
from metaalign.store.columns import Columns
from metaalign.train.losses import formulas
from metaalign.train.model.policy import sequence_logprobs

REWARD_ACCURACY = "reward_accuracy"
"""Share of the pairs whose chosen response has the larger reward; a tie counts as half."""

REWARD_MARGIN = "reward_margin"
"""Mean of the chosen reward minus the rejected."""

CHOSEN_REWARD = "chosen_reward"
"""Mean reward of the chosen responses: beta times the score that the loss compares. The score is
the policy's log-ratio to the reference; for ipo its average; for simpo and orpo the average
log-prob."""

REJECTED_REWARD = "rejected_reward"
"""Mean reward of the rejected responses."""


class LossSum(NamedTuple):
    """Sums over a micro-batch. Divided by the step's global weight, they are weighted means."""

    value: Tensor
    """Scalar, in nats."""

    metrics: dict[str, Tensor]
    """Scalars by name, without gradients. The names are the same in every call."""


class Pairs(NamedTuple):
    """Every strictly ordered pair of some sequences."""

    chosen: np.ndarray
    """(P,) slots."""
    rejected: np.ndarray
    """(P,) slots."""
    share: np.ndarray
    """(P,) float64: 1 / the number of pairs of the same example, so that an example's shares sum to
    1."""


class Gaps(NamedTuple):
    """Reward difference of every pair of a selection."""

    example: np.ndarray
    """(P,) position in the selection."""
    share: np.ndarray
    """(P,) as in `Pairs`."""
    reward: np.ndarray
    """(P,) chosen reward minus rejected reward, divided by beta."""


def loss_function(config: PreferenceLossConfig) -> Callable[..., Tensor]:
    """The formula that `config.kind` names, with beta and the loss's own settings bound."""
    function = getattr(formulas, config.kind.function)
    return partial(function, beta=config.beta, **config.own_settings)


def ordered_slots(occurrence: np.ndarray, score: np.ndarray) -> Pairs:
    """All pairs of sequences that belong to the same example and differ in score.

    Args:
        occurrence: (S,) number of the example, ascending.
        score: (S,) a larger score is better.
    """
    count = np.bincount(occurrence)
    chosen = np.repeat(np.arange(len(score)), count[occurrence])
    rejected, _ = ranges(np.append(0, np.cumsum(count)), occurrence)
    better = score[chosen] > score[rejected]
    chosen, rejected = chosen[better], rejected[better]
    pairs = np.bincount(occurrence[chosen], minlength=len(count))
    return Pairs(chosen, rejected, 1.0 / pairs[occurrence[chosen]])


class SFTLoss:
    """Negative log-probability of every target, weighted by its example's weight."""

    metrics: tuple[str, ...] = ()

    def __init__(self, selection: Selection, columns: Columns) -> None:
        self._weight = columns.weight[selection.example]

    def __call__(self, logprobs: Tensor, rows: Rows) -> LossSum:
        """Args: (T,) log-probabilities in nats, and the rows that hold their targets."""
        weight = np.append(self._weight[rows.position], 0.0)[rows.sequence]
        return LossSum(formulas.sft_loss(logprobs=logprobs, weight=like(logprobs, weight)), {})


class PairLoss:
    """A loss over every strictly ordered pair of an example, averaged over the example's pairs.

    If `sft_weight` is set, the loss also has an SFT term: the negative log-probability of the best
    response, divided by its number of target tokens, as in https://arxiv.org/abs/2404.19733,
    equation 1.
    """

    metrics: tuple[str, ...] = (REWARD_ACCURACY, REWARD_MARGIN, CHOSEN_REWARD, REJECTED_REWARD)

    def __init__(
        self,
        selection: Selection,
        columns: Columns,
        references: np.ndarray | None,
        config: PreferenceLossConfig,
    ) -> None:
        """Gather score, weight, margin and reference log-probs of every used response.

        Args:
            references: (M, R) summed log-probabilities in nats, aligned with
                `selection.response`. NaN is allowed for responses that no row contains. None if
                the loss uses no reference.
        """
        assert (references is not None) == config.kind.has_reference
        assert references is None or references.shape[1:] == selection.response.shape
        first = np.repeat(columns.response_start[selection.example], selection.response_count)
        self._selection = selection
        self._order = columns.order_score[first + selection.response]
        self._weight = columns.weight[selection.example]
        self._margin = columns.margin[selection.example]
        self._references = references
        self._config = config
        self._function = loss_function(config)

    def __call__(self, logprobs: Tensor, rows: Rows) -> LossSum:
        """Args: (T,) log-probabilities in nats, and the rows that hold their targets."""
        flat = response_index(self._selection, rows)
        policy = sequence_logprobs(logprobs, like(logprobs, rows.sequence), rows.num_sequences)
        pairs = ordered_slots(rows.occurrence, self._order[flat])
        chosen, rejected = self._scores(policy, flat, pairs)
        value = self._sum(chosen, rejected, pairs, rows)
        if self._config.sft_weight:
            share = like(policy, self._best_share(flat, rows))
            value = value - self._config.sft_weight * (share * policy).sum()
        weight = like(policy, pairs.share * self._weight[rows.position[pairs.chosen]])
        beta = self._config.beta
        rewards = pair_rewards(beta * chosen.detach(), beta * rejected.detach())
        sums = {name: (weight * values).sum() for name, values in rewards.items()}
        return LossSum(value, sums)

    def gaps(self, logprobs: np.ndarray) -> Gaps:
        """The reward differences of all pairs of the selection.

        Args:
            logprobs: (R,) summed log-probs of the policy, in nats.
        """
        selection = self._selection
        example = np.repeat(np.arange(len(selection)), selection.response_count)
        pairs = ordered_slots(example, self._order)
        everything = np.arange(len(logprobs))
        chosen, rejected = self._scores(torch.from_numpy(logprobs), everything, pairs)
        return Gaps(example[pairs.chosen], pairs.share, (chosen - rejected).numpy())

    def _scores(self, policy: Tensor, flat: np.ndarray, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """The scores that the loss compares: (P,) of the chosen and (P,) of the rejected responses.

        Args:
            policy: (S,) summed log-probs of the policy.
            flat: (S,) indices of these responses among all used ones.
        """
        scores = [policy[pairs.chosen], policy[pairs.rejected]]
        places = [flat[pairs.chosen], flat[pairs.rejected]]
        if self._references is not None:
            references = [like(policy, self._references[:, place]) for place in places]
            merged = [part[0] for part in references]
            if len(self._references) > 1:
                assert self._config.reference_clip is not None
                merged = formulas.virtual_reference(
                    chosen=references[0], rejected=references[1], clip=self._config.reference_clip
                )
            scores = [score - part for score, part in zip(scores, merged, strict=True)]
        if self._config.kind.is_mean:
            counts = [like(policy, self._selection.target_count[place]) for place in places]
            scores = [score / count for score, count in zip(scores, counts, strict=True)]
        return scores[0], scores[1]

    def _sum(self, chosen: Tensor, rejected: Tensor, pairs: Pairs, rows: Rows) -> Tensor:
        """The weighted sum over the micro-batch."""
        compute, position = self._function, rows.position[pairs.chosen]
        if self._config.kind.has_margin:
            compute = partial(compute, margin=like(chosen, self._margin[position]))
        weight = like(chosen, pairs.share * self._weight[position])
        return (weight * compute(chosen=chosen, rejected=rejected)).sum()

    def _best_share(self, flat: np.ndarray, rows: Rows) -> np.ndarray:
        """(S,) the example's weight / the number of target tokens for each example's best response,
        0 for all others. Of equally good responses the first is the best."""
        by_score = np.lexsort((-self._order[flat], rows.occurrence))
        _, first = np.unique(rows.occurrence, return_index=True)
        best = by_score[first]
        share = np.zeros(rows.num_sequences)
        share[best] = self._weight[rows.position[best]]
        return share / self._selection.target_count[flat]


class RankingLoss(PairLoss):
    """Plackett-Luce loss over all responses of an example. The metrics are those of `PairLoss`."""

    def _sum(self, chosen: Tensor, rejected: Tensor, pairs: Pairs, rows: Rows) -> Tensor:
        by_slot = self._function(
            chosen=chosen,
            rejected=rejected,
            slot=like(chosen, pairs.chosen),
            num_slots=rows.num_sequences,
        )
        return (like(chosen, self._weight[rows.position]) * by_slot).sum()


def pair_rewards(chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
    """(P,) values of each metric, from the (P,) rewards of the pairs."""
    return {
        REWARD_ACCURACY: (chosen > rejected) + 0.5 * (chosen == rejected),
        REWARD_MARGIN: chosen - rejected,
        CHOSEN_REWARD: chosen,
        REJECTED_REWARD: rejected,
    }


def like(tensor: Tensor, values: np.ndarray) -> Tensor:
    """The values on the device of `tensor`. Floating-point values get its dtype."""
    moved = torch.from_numpy(values).to(tensor.device)
    return moved.to(tensor.dtype) if moved.is_floating_point() else moved
