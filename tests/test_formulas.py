"""The formulas, on numbers worked by hand."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from metaalign.train.losses.formulas import (
    apo_down_loss,
    apo_zero_loss,
    dpo_loss,
    hinge_loss,
    ipo_loss,
    kto_loss,
    orpo_loss,
    plackett_luce_loss,
    robust_loss,
    sft_loss,
    simpo_loss,
    sppo_hard_loss,
    virtual_reference,
)

LOG_2, LOG_3, LOG_4, LOG_8 = (math.log(n) for n in (2, 3, 4, 8))


def of(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def gradients(
    loss: Callable[..., Tensor], chosen: float, rejected: float, **settings: float
) -> tuple[float, float]:
    """The slopes of one pair's loss along its chosen and its rejected response."""
    first, second = of(chosen), of(rejected)
    loss(chosen=first, rejected=second, **settings).sum().backward()
    assert first.grad is not None
    assert second.grad is not None
    return first.grad.item(), second.grad.item()


def test_sft_is_the_weighted_sum() -> None:
    logprobs, weight = torch.tensor([-1.0, -2.0, -4.0]), torch.tensor([1.0, 0.5, 0.0])
    assert sft_loss(logprobs=logprobs, weight=weight).item() == 2.0  # 1 * 1 + 0.5 * 2


def test_dpo_by_hand_and_a_margin_asks_for_more() -> None:
    # Gaps of 4 and 0 at beta 0.5: -log sigmoid(2) = log(1 + e^-2) = 0.1269280, and log 2.
    found = dpo_loss(chosen=of(3.0, -2.0), rejected=of(-1.0, -2.0), beta=0.5)
    assert found.tolist() == pytest.approx([0.1269280, LOG_2])
    margin = torch.tensor([2.0, -2.0])
    found = dpo_loss(chosen=of(3.0, -2.0), rejected=of(-1.0, -2.0), beta=0.5, margin=margin)
    assert found.tolist() == pytest.approx([LOG_2, 0.1269280])
    assert gradients(dpo_loss, 0.0, 0.0, beta=0.5) == pytest.approx((-0.25, 0.25))


def test_ipo_asks_for_a_gap_and_no_more() -> None:
    # beta 0.5 asks for a gap of 1. Gaps of 0.75 and 1.75 miss it by 0.25 and 0.75.
    found = ipo_loss(chosen=of(0.5, 1.5), rejected=of(-0.25, -0.25), beta=0.5)
    assert found.tolist() == pytest.approx([0.0625, 0.5625])
    assert gradients(ipo_loss, 0.5, -0.25, beta=0.5) == pytest.approx((-0.5, 0.5))
    assert gradients(ipo_loss, 1.5, -0.25, beta=0.5) == pytest.approx((1.5, -1.5))
    # At the start, the whole of (1 / (2 beta))^2.
    assert ipo_loss(chosen=of(0.0), rejected=of(0.0), beta=0.1).item() == pytest.approx(25.0)


def test_hinge_stops_once_the_gap_is_reached() -> None:
    # beta 0.5: gaps of 1 and 4 are 0.5 and 2 of the 1 that is asked for.
    found = hinge_loss(chosen=of(1.0, 3.0), rejected=of(0.0, -1.0), beta=0.5)
    assert found.tolist() == [0.5, 0.0]
    margin = torch.tensor([0.0, 1.5])
    found = hinge_loss(chosen=of(1.0, 3.0), rejected=of(0.0, -1.0), beta=0.5, margin=margin)
    assert found.tolist() == [0.5, 0.5]
    assert gradients(hinge_loss, 1.0, 0.0, beta=0.5) == (-0.5, 0.5)
    assert gradients(hinge_loss, 3.0, -1.0, beta=0.5) == (0.0, 0.0)


def test_robust_takes_the_flipped_labels_out_again() -> None:
    # l(2) = 0.1269280 and l(-2) = 2.1269280: (0.9 * l(2) - 0.1 * l(-2)) / 0.8 = -0.1230720.
    settings = {"beta": 0.5, "label_smoothing": 0.1}
    found = robust_loss(chosen=of(3.0), rejected=of(-1.0), **settings)
    assert found.item() == pytest.approx(-0.1230720)
    # The mean over labels that are flipped one time in ten is the loss of the true label.
    flipped = robust_loss(chosen=of(-1.0), rejected=of(3.0), **settings)
    assert (0.9 * found + 0.1 * flipped).item() == pytest.approx(0.1269280)
    # With a margin of 1 either way: (0.9 * l(1) - 0.1 * l(-3)) / 0.8, 0.3132617 and 3.0485874.
    found = robust_loss(chosen=of(3.0), rejected=of(-1.0), margin=1.0, **settings)
    assert found.item() == pytest.approx(-0.0286540, abs=1e-6)
    assert gradients(robust_loss, 0.0, 0.0, **settings)[0] < 0
    assert gradients(robust_loss, 0.0, 0.0, **settings)[1] > 0


def test_simpo_by_hand() -> None:
    # 2 * (-0.5 + 1.0) - 0.5 = 0.5: log(1 + e^-0.5) = 0.4740770. A margin of 0.5 leaves 0.
    settings = {"beta": 2.0, "target_margin": 0.5}
    assert simpo_loss(chosen=of(-0.5), rejected=of(-1.0), **settings).item() == pytest.approx(
        0.4740770
    )
    found = simpo_loss(chosen=of(-0.5), rejected=of(-1.0), margin=0.5, **settings)
    assert found.item() == pytest.approx(LOG_2)
    slope = 2.0 / (1 + math.exp(0.5))  # beta * sigmoid(-0.5)
    assert gradients(simpo_loss, -0.5, -1.0, **settings) == pytest.approx((-slope, slope))


def test_orpo_by_hand() -> None:
    # Odds of 1/2 and 1/5 are 1 and 1/4: -log sigmoid(log 4) = log(5/4) = 0.2231436, halved.
    found = orpo_loss(chosen=of(-LOG_2), rejected=of(-math.log(5)), beta=0.5)
    assert found.item() == pytest.approx(0.1115718)
    slopes = gradients(orpo_loss, -LOG_2, -math.log(5), beta=0.5)
    # d log odds / d log p = 1 / (1 - p): 2 and 5/4, each times beta * sigmoid(-log 4) = 0.1.
    assert slopes == pytest.approx((-0.2, 0.125))


def test_orpo_stays_finite_where_a_response_is_certain() -> None:
    chosen, rejected = of(0.0), of(-1.0)
    loss = orpo_loss(chosen=chosen, rejected=rejected, beta=1.0)
    assert loss.item() == pytest.approx(0.0, abs=1e-9)
    loss.sum().backward()
    assert chosen.grad is not None
    assert torch.isfinite(chosen.grad).all()


def test_apo_by_hand() -> None:
    # beta 0.5: log-ratios of 2 log 3 and its negative have sigmoids 3/4 and 1/4; their gap 9/10.
    pair = {"chosen": of(2 * LOG_3), "rejected": of(-2 * LOG_3), "beta": 0.5}
    assert apo_zero_loss(**pair).item() == pytest.approx(0.5)  # 1 - 3/4 + 1/4
    assert apo_down_loss(**pair).item() == pytest.approx(0.85)  # 3/4 + 1 - 9/10
    assert gradients(apo_zero_loss, 0.0, 0.0, beta=0.5) == pytest.approx((-0.125, 0.125))
    # Slopes of the sigmoid: 3/16 at 3/4, 9/100 at 9/10. down lowers the chosen response too.
    down = gradients(apo_down_loss, 2 * LOG_3, -2 * LOG_3, beta=0.5)
    assert down == pytest.approx((0.5 * (0.1875 - 0.09), 0.5 * 0.09))


def test_sppo_by_hand() -> None:
    # beta 0.5 asks for log-ratios of 1 and -1: 2^2 + 0.5^2.
    found = sppo_hard_loss(chosen=of(3.0), rejected=of(-1.5), beta=0.5)
    assert found.item() == pytest.approx(4.25)
    assert gradients(sppo_hard_loss, 0.0, 0.0, beta=0.5) == pytest.approx((-2.0, 2.0))


def ranking(ratios: Tensor, pairs: list[tuple[int, int]], beta: float = 1.0) -> Tensor:
    chosen, rejected = (torch.tensor(side) for side in zip(*pairs, strict=True))
    return plackett_luce_loss(
        chosen=ratios[chosen],
        rejected=ratios[rejected],
        slot=chosen,
        num_slots=len(ratios),
        beta=beta,
    )


def test_plackett_luce_by_hand() -> None:
    ratios = of(math.log(3), math.log(6), 0.0)
    # The second is drawn with 6 of 6 + 3 + 1, then the first with 3 of 3 + 1, the third alone.
    found = ranking(ratios, [(1, 0), (1, 2), (0, 2)])
    assert found.tolist() == pytest.approx([math.log(4 / 3), math.log(10 / 6), 0.0])
    found.sum().backward()
    assert ratios.grad is not None
    # 3/10 - 1/4 for the first, 6/10 - 1 for the second, 1/10 + 1/4 for the third.
    assert ratios.grad.tolist() == pytest.approx([0.05, -0.4, 0.35])


def test_plackett_luce_never_draws_equals_against_each_other() -> None:
    found = ranking(of(math.log(3), math.log(6), 0.0), [(1, 0), (1, 2)])
    assert found.tolist() == pytest.approx([0.0, math.log(10 / 6), 0.0])


def test_plackett_luce_of_two_is_dpo_and_large_ratios_do_not_overflow() -> None:
    two = ranking(of(-1.0, 3.0), [(1, 0)], beta=0.5).sum().item()
    assert two == pytest.approx(0.1269280)  # -log sigmoid(0.5 * 4)
    assert ranking(of(0.0, 2000.0), [(0, 1)]).sum().item() == pytest.approx(2000.0)


def test_kto_by_hand() -> None:
    # beta 0.5: 2 log 3 above the reference point is a sigmoid of 3/4.
    ratio = of(1.0 + 2 * LOG_3, 1.0 + 2 * LOG_3)
    desirable, point = torch.tensor([True, False]), torch.tensor(1.0)
    found = kto_loss(ratio=ratio, desirable=desirable, reference_point=point, beta=0.5)
    assert found.tolist() == pytest.approx([0.25, 0.75])
    weighted = kto_loss(
        ratio=ratio,
        desirable=desirable,
        reference_point=point,
        beta=0.5,
        desirable_weight=2.0,
        undesirable_weight=3.0,
    )
    assert weighted.tolist() == pytest.approx([0.5, 2.25])
    found.sum().backward()
    assert ratio.grad is not None
    assert ratio.grad.tolist() == pytest.approx([-0.5 * 0.1875, 0.5 * 0.1875])


def test_the_virtual_reference_is_a_weighted_mean_of_inverse_probabilities() -> None:
    # The first model tells the pair apart by log 2, the second by 3 log 2: shares 1/4 and 3/4.
    chosen = torch.tensor([[-LOG_4], [-LOG_2]], dtype=torch.float64)
    rejected = torch.tensor([[-LOG_8], [-2 * LOG_4]], dtype=torch.float64)
    first, second = virtual_reference(chosen=chosen, rejected=rejected, clip=0.9)
    assert first.item() == pytest.approx(-math.log(2.5))  # 4 / 4 + 3/4 * 2
    assert second.item() == pytest.approx(-math.log(14))  # 8 / 4 + 3/4 * 16
    # Within a tenth of the first's log-probs, the second's are 0.9 log 4 and 1.1 log 8.
    first, second = virtual_reference(chosen=chosen, rejected=rejected, clip=0.1)
    assert first.item() == pytest.approx(-math.log(1 + 0.75 * 4**0.9))
    assert second.item() == pytest.approx(-math.log(2 + 0.75 * 8**1.1))


def test_equal_references_are_one_also_where_they_tell_nothing_apart() -> None:
    chosen, rejected = torch.tensor([[-4.0, -6.0]] * 3), torch.tensor([[-9.0, -6.0]] * 3)
    first, second = virtual_reference(chosen=chosen, rejected=rejected, clip=0.1)
    assert first.tolist() == pytest.approx([-4.0, -6.0])
    assert second.tolist() == pytest.approx([-9.0, -6.0])
