"""SFT and preference losses. Tensors in, tensors out: no model, no data, no config, no Ray.

`pairs` and `kto` gather these functions' inputs from a micro-batch. A *log-ratio* is
log pi(y|x) - log pi_ref(y|x), summed over the response's targets. An *average* log-prob or
log-ratio is the sum divided by the number of targets. All are in nats.

Dimensions: T = targets, S = sequences, P = pairs, M = references.
"""

import torch
from torch import Tensor
from torch.nn import functional

_LARGEST_AVERAGE = -1e-12
"""Upper bound of an average log-prob: a response of probability 1 has no finite odds."""


def sft_loss(*, logprobs: Tensor, weight: Tensor) -> Tensor:
    """Weighted negative log-likelihood, summed.

    Args:
        logprobs: (T,) in nats.
        weight: (T,) weight of the target's example; 0 for padding.

    Returns:
        Scalar; the caller divides by the step's global sum of weights.
    """
    return -(weight * logprobs).sum()


def dpo_loss(
    *, chosen: Tensor, rejected: Tensor, beta: float, margin: Tensor | float = 0.0
) -> Tensor:
    """Direct preference optimization, https://arxiv.org/abs/2305.18290, equation 7.

    Args:
        chosen: (P,) log-ratios of the chosen responses.
        rejected: (P,) log-ratios of the rejected responses.
        beta: Strength of the pull towards the reference. A larger beta keeps the policy closer.
        margin: (P,) by how much the chosen reward should exceed the rejected one, as in
            https://arxiv.org/abs/2307.09288, equation 2.

    Returns:
        (P,) one loss per pair.
    """
    return -functional.logsigmoid(beta * (chosen - rejected) - margin)


def ipo_loss(*, chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Identity preference optimization, https://arxiv.org/abs/2310.12036, equation 17.

    The log-ratios are averages, so the target gap does not depend on length.

    Args:
        chosen: (P,) average log-ratios of the chosen responses.
        rejected: (P,) average log-ratios of the rejected responses.
        beta: The paper's tau: the target gap is 1 / (2 beta).

    Returns:
        (P,) one loss per pair.
    """
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def hinge_loss(
    *, chosen: Tensor, rejected: Tensor, beta: float, margin: Tensor | float = 0.0
) -> Tensor:
    """Hinge loss on the reward gap: SLiC (https://arxiv.org/abs/2305.10425) over log-ratios, as in
    https://arxiv.org/abs/2309.06657 (hinge-norm).

    Takes and returns what `dpo_loss` does. The loss is 0 if the gap is at least 1 + margin.
    """
    return torch.relu(1 + margin - beta * (chosen - rejected))


def robust_loss(
    *,
    chosen: Tensor,
    rejected: Tensor,
    beta: float,
    label_smoothing: float,
    margin: Tensor | float = 0.0,
) -> Tensor:
    """Unbiased DPO if labels are flipped at a known rate, https://arxiv.org/abs/2403.00409.

    Takes and returns what `dpo_loss` does; the loss may be negative.

    Args:
        label_smoothing: Rate of flipped labels, below 0.5.
    """
    gap = beta * (chosen - rejected)
    as_labelled = -functional.logsigmoid(gap - margin)
    flipped = -functional.logsigmoid(-gap - margin)
    noise = label_smoothing
    return ((1 - noise) * as_labelled - noise * flipped) / (1 - 2 * noise)


def simpo_loss(
    *,
    chosen: Tensor,
    rejected: Tensor,
    beta: float,
    target_margin: float,
    margin: Tensor | float = 0.0,
) -> Tensor:
    """Simple preference optimization, https://arxiv.org/abs/2405.14734, equation 6.

    Args:
        chosen: (P,) the policy's average log-probs of the chosen responses, without a reference.
        rejected: (P,) the same for the rejected responses.
        beta: Scale of the reward.
        target_margin: The paper's gamma: by how much every chosen reward should exceed the
            rejected one.
        margin: (P,) added to `target_margin` for this pair.

    Returns:
        (P,) one loss per pair.
    """
    return -functional.logsigmoid(beta * (chosen - rejected) - target_margin - margin)


def orpo_loss(*, chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Odds ratio, https://arxiv.org/abs/2403.07691, equation 7, times its weight in equation 6.

    The caller adds the SFT term of equation 6.

    Args:
        chosen: (P,) the policy's average log-probs of the chosen responses, without a reference.
        rejected: (P,) the same for the rejected responses.
        beta: The paper's lambda.

    Returns:
        (P,) one loss per pair.
    """
    return -beta * functional.logsigmoid(_log_odds(chosen) - _log_odds(rejected))


def _log_odds(logprob: Tensor) -> Tensor:
    """log(p / (1 - p))."""
    logprob = logprob.clamp(max=_LARGEST_AVERAGE)
    return logprob - torch.log(-torch.expm1(logprob))


def apo_zero_loss(*, chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Anchored preference optimization, https://arxiv.org/abs/2408.06266, equation 7.

    Raises the probability of the chosen response and lowers that of the rejected one. Suits data
    whose chosen responses are better than the model's own.

    Takes and returns what `dpo_loss` does.
    """
    return 1 - torch.sigmoid(beta * chosen) + torch.sigmoid(beta * rejected)


def apo_down_loss(*, chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Anchored preference optimization, https://arxiv.org/abs/2408.06266, equation 8.

    Lowers the probability of both, more for the rejected response. Suits data whose chosen
    responses are worse than the model's own.

    Takes and returns what `dpo_loss` does.
    """
    return torch.sigmoid(beta * chosen) + 1 - torch.sigmoid(beta * (chosen - rejected))


def sppo_hard_loss(*, chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Self-play preference optimization, https://arxiv.org/abs/2405.00675, equation 4.7, for a
    chosen response that always wins and a rejected one that never does.

    Takes and returns what `dpo_loss` does.

    Args:
        beta: 1 / eta of the paper: the target log-ratios are 1 / (2 beta) for the chosen response
            and -1 / (2 beta) for the rejected one.
    """
    return (chosen - 0.5 / beta) ** 2 + (rejected + 0.5 / beta) ** 2


def plackett_luce_loss(
    *, chosen: Tensor, rejected: Tensor, slot: Tensor, num_slots: int, beta: float
) -> Tensor:
    """DPO on rankings, https://arxiv.org/abs/2305.18290, appendix A.3.

    Each response is compared with all worse ones of its example. Responses of equal score are not
    compared with each other. For two responses this is DPO's loss.

    Args:
        chosen: (P,) log-ratios of the better response in every strictly ordered pair of an example.
        rejected: (P,) log-ratios of the worse response.
        slot: (P,) index of the better response, from 0 to S - 1.
        num_slots: S.

    Returns:
        (S,) one term per response; 0 for a response without a worse one. An example's loss is the
        sum over its responses.
    """
    lead = beta * (rejected - chosen)
    # log(1 + sum exp(lead)), with the largest term taken out.
    largest = lead.new_zeros(num_slots).scatter_reduce(0, slot, lead.detach(), "amax")
    summed = torch.exp(-largest).index_add(0, slot, torch.exp(lead - largest[slot]))
    return largest + torch.log(summed)


def kto_loss(
    *,
    ratio: Tensor,
    desirable: Tensor,
    reference_point: Tensor,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """Kahneman-Tversky optimization, https://arxiv.org/abs/2402.01306, section 4.

    Args:
        ratio: (S,) log-ratios.
        desirable: (S,) bool.
        reference_point: Scalar z0 of the whole step, without a gradient: the mean log-ratio of
            responses to other prompts, clamped to at least 0.

    Returns:
        (S,) one loss per response, between 0 and the weight of its label.
    """
    gain = beta * (ratio - reference_point)
    good = desirable_weight * (1 - torch.sigmoid(gain))
    return torch.where(desirable, good, undesirable_weight * (1 - torch.sigmoid(-gain)))


def virtual_reference(*, chosen: Tensor, rejected: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Log-probs of one reference that merges several, https://arxiv.org/abs/2405.16388 (MRPO).

    1 / pi_ref is the weighted mean of 1 / pi_k. The weight a_k of a model is proportional to
    |log pi_k(chosen) - log pi_k(rejected)|; the weights are equal if all these are 0.

    Args:
        chosen: (M, P) summed log-probs of the chosen responses; row 0 is the first reference.
        rejected: (M, P) the same for the rejected responses.
        clip: The log-probs of the other references are clipped to between 1 - clip and 1 + clip
            times those of the first.

    Returns:
        (P,) log-probs of the chosen responses, and of the rejected.
    """
    clarity = (chosen - rejected).abs()
    total = clarity.sum(0)
    share = torch.where(total > 0, clarity / total, 1 / len(clarity))
    near = (_clip_to_first(logprobs, clip) for logprobs in (chosen, rejected))
    first, second = (-torch.logsumexp(share.log() - logprobs, 0) for logprobs in near)
    return first, second


def _clip_to_first(logprobs: Tensor, clip: float) -> Tensor:
    first = logprobs[0]
    return logprobs.clamp((1 + clip) * first, (1 - clip) * first)
