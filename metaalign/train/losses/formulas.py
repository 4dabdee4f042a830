"""SFT and preference losses. Tensors in, tensors out: no model, no data, no config, no Ray.

`pairs` and `kto` gather from a micro-batch what these functions take. A *log-ratio* is
log pi(y|x) - log pi_ref(y|x), summed over the response's targets; an *average* log-prob or
log-ratio is divided by their number. All are in nats.

Dimensions: T = targets, S = sequences, P = pairs, M = references.
"""

import torch
from torch import Tensor
from torch.nn import functional

_LARGEST_AVERAGE = -1e-12
"""A response of probability 1 has no finite odds."""


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
    *, chosen: Tensor, rejected: Tensor, beta: float, margin: Tensor | float = 0.0
) -> Tensor:
    """Direct preference optimization, https://arxiv.org/abs/2305.18290, equation 7.

    Args:
        chosen: (P,) log-ratios of the chosen responses.
        rejected: (P,) log-ratios of the rejected.
        beta: Strength of the pull towards the reference. Larger stays closer.
        margin: (P,) by how much the chosen reward should lead, as in
            https://arxiv.org/abs/2307.09288, equation 2.

    Returns:
        (P,) one loss a pair.
    """
    return -functional.logsigmoid(beta * (chosen - rejected) - margin)


def ipo_loss(*, chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Identity preference optimization, https://arxiv.org/abs/2310.12036, equation 17.

    The log-ratios are averages, so that the gap that is asked for does not depend on length.

    Args:
        chosen: (P,) average log-ratios of the chosen responses.
        rejected: (P,) average log-ratios of the rejected.
        beta: The paper's tau: the gap that is asked for is 1 / (2 beta).

    Returns:
        (P,) one loss a pair.
    """
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def hinge_loss(
    *, chosen: Tensor, rejected: Tensor, beta: float, margin: Tensor | float = 0.0
) -> Tensor:
    """Hinge on the reward gap: SLiC's (https://arxiv.org/abs/2305.10425) over log-ratios, as in
    https://arxiv.org/abs/2309.06657 (hinge-norm).

    Args and result as of `dpo_loss`; a gap of 1 + margin costs nothing.
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
    """DPO without bias under labels flipped at a known rate, https://arxiv.org/abs/2403.00409.

    Args and result as of `dpo_loss`; may be negative.

    Args:
        label_smoothing: Rate of flipped labels, below 0.5.
    """
    gap = beta * (chosen - rejected)
    as_told = -functional.logsigmoid(gap - margin)
    flipped = -functional.logsigmoid(-gap - margin)
    noise = label_smoothing
    return ((1 - noise) * as_told - noise * flipped) / (1 - 2 * noise)


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
        chosen: (P,) the policy's average log-probs of the chosen responses: no reference.
        rejected: (P,) of the rejected.
        beta: Scale of the reward.
        target_margin: gamma, by how much every chosen reward should lead.
        margin: (P,) by how much more this one should.

    Returns:
        (P,) one loss a pair.
    """
    return -functional.logsigmoid(beta * (chosen - rejected) - target_margin - margin)


def orpo_loss(*, chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Odds ratio, https://arxiv.org/abs/2403.07691, equation 7, times its weight in equation 6.

    The SFT term of equation 6 is the caller's.

    Args:
        chosen: (P,) the policy's average log-probs of the chosen responses: no reference.
        rejected: (P,) of the rejected.
        beta: The paper's lambda.

    Returns:
        (P,) one loss a pair.
    """
    return -beta * functional.logsigmoid(_log_odds(chosen) - _log_odds(rejected))


def _log_odds(logprob: Tensor) -> Tensor:
    """log(p / (1 - p))."""
    logprob = logprob.clamp(max=_LARGEST_AVERAGE)
    return logprob - torch.log(-torch.expm1(logprob))


def apo_zero_loss(*, chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Anchored preference optimization, https://arxiv.org/abs/2408.06266, equation 7.

    Raises the chosen response and lowers the rejected: for chosen ones better than the model's own.

    Args and result as of `dpo_loss`.
    """
    return 1 - torch.sigmoid(beta * chosen) + torch.sigmoid(beta * rejected)


def apo_down_loss(*, chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Anchored preference optimization, https://arxiv.org/abs/2408.06266, equation 8.

    Lowers both, the rejected response more: for chosen ones worse than the model's own.

    Args and result as of `dpo_loss`.
    """
    return torch.sigmoid(beta * chosen) + 1 - torch.sigmoid(beta * (chosen - rejected))


def sppo_hard_loss(*, chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Self-play preference optimization, https://arxiv.org/abs/2405.00675, equation 4.7, for a
    chosen response that always wins and a rejected one that never does.

    Args and result as of `dpo_loss`.

    Args:
        beta: 1 / eta of the paper: the log-ratios that are asked for are 1 / (2 beta) and its
            negative.
    """
    return (chosen - 0.5 / beta) ** 2 + (rejected + 0.5 / beta) ** 2


def plackett_luce_loss(
    *, chosen: Tensor, rejected: Tensor, slot: Tensor, num_slots: int, beta: float
) -> Tensor:
    """DPO on rankings, https://arxiv.org/abs/2305.18290, appendix A.3.

    Each response is drawn against all worse ones of its example. Responses of one score are not
    told apart: neither is drawn against the other. Two responses make DPO's loss.

    Args:
        chosen: (P,) log-ratios of the better response in every strictly ordered pair of an example.
        rejected: (P,) of the worse.
        slot: (P,) which of the responses the better one is.
        num_slots: S.

    Returns:
        (S,) by slot, which an example's loss is the sum of; 0 for a response without a worse one.
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
        reference_point: Scalar z0 without a gradient, of the whole step: the mean log-ratio of
            responses to other prompts, and no less than 0.

    Returns:
        (S,) one loss a response, between 0 and its weight.
    """
    gain = beta * (ratio - reference_point)
    good = desirable_weight * (1 - torch.sigmoid(gain))
    return torch.where(desirable, good, undesirable_weight * (1 - torch.sigmoid(-gain)))


def virtual_reference(*, chosen: Tensor, rejected: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Several references as one, https://arxiv.org/abs/2405.16388 (MRPO).

    1 / pi_ref is the mean of 1 / pi_k, each model weighted by how clearly it tells the pair apart:
    a_k proportional to |log pi_k(chosen) - log pi_k(rejected)|, equal where none of them does.

    Args:
        chosen: (M, P) summed log-probs of the chosen responses, the first reference's first.
        rejected: (M, P) of the rejected.
        clip: The others' are clipped to within 1 - clip and 1 + clip times the first's.

    Returns:
        (P,) each, of chosen and rejected.
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
