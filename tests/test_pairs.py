"""What the losses gather from rows and the index, on numbers worked by hand."""

import math
from typing import Any

import numpy as np
import pytest

from metaalign.config.preference_losses import PreferenceLossConfig
from metaalign.steps.selection import select_best, select_ranked
from metaalign.train.losses.pairs import (
    CHOSEN_REWARD,
    REJECTED_REWARD,
    REWARD_ACCURACY,
    REWARD_MARGIN,
    PairLoss,
    RankingLoss,
    SFTLoss,
    ordered_slots,
)
from tests.loss_rows import make_rows, spread
from tests.tiny_columns import Item, make_columns


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


PAIR = Item(responses=(2, 3), scores=(1.0, 0.0))


def compute(
    items: list[Item], sums: list[float], passes: list[list[float]] | None, **settings: Any
):
    """The loss of every example in a row, its sums, its log-probabilities and its rows."""
    columns = make_columns(items)
    selection = select_ranked(columns, split=None, context=99)
    rows = make_rows(selection, list(range(len(items))), padding=2)
    logprobs = spread(sums, rows)
    config = PreferenceLossConfig(**settings)
    form = RankingLoss if config.name == "plackett_luce" else PairLoss
    loss = form(selection, columns, passes and np.array(passes), config)
    return loss, loss(logprobs, rows), logprobs, rows


def dpo(items: list[Item], sums: list[float], reference: list[float], **settings: Any):
    return compute(items, sums, [reference], **{"beta": 0.5, **settings})


def test_sft_weighs_targets_and_leaves_padding_out():
    columns = make_columns([Item(responses=(2,)), Item(responses=(3,), weight=0.5)])
    selection = select_best(columns, split=None, context=99)
    rows = make_rows(selection, [1, 0], padding=4)
    logprobs = spread([-6.0, -10.0], rows)
    value, metrics = SFTLoss(selection, columns)(logprobs, rows)
    assert value.item() == pytest.approx(13.0)  # 0.5 * 6 + 10
    assert metrics == {}
    value.backward()
    assert logprobs.grad.tolist() == [-0.5] * 3 + [-1.0] * 2 + [0.0] * 4
    # The global weight of a step of the two: 2 targets, and 3 of half weight.
    assert selection.loss_weight.sum() == 3.5


def test_dpo_starts_at_log_two_for_pairs_and_rankings():
    items = [PAIR, PAIR._replace(weight=3.0), Item(responses=(1, 2, 3), scores=(0.0, 2.0, 1.0))]
    sums = [-3.0, -7.0, -1.0, -2.0, -4.0, -9.0, -5.0]
    _, (value, metrics), _, _ = dpo(items, sums, sums)
    assert value.item() == pytest.approx(5.0 * math.log(2), abs=1e-9)  # weights 1, 3 and 1
    assert metrics[REWARD_MARGIN].item() == pytest.approx(0.0, abs=1e-9)


def test_the_better_response_is_the_chosen_one_wherever_it_stands():
    # Chosen 3 above its reference, rejected 1 below: 0.5 * (3 + 1) = 2.
    expected = -math.log(sigmoid(2.0))
    _, (value, metrics), logprobs, _ = dpo([PAIR], [-2.0, -6.0], [-5.0, -5.0])
    assert value.item() == pytest.approx(expected)
    assert metrics[CHOSEN_REWARD].item() == pytest.approx(1.5)
    assert metrics[REJECTED_REWARD].item() == pytest.approx(-0.5)
    assert metrics[REWARD_MARGIN].item() == pytest.approx(2.0)
    assert metrics[REWARD_ACCURACY].item() == 1.0
    value.backward()
    slope = 0.5 * sigmoid(-2.0)
    assert logprobs.grad.tolist() == pytest.approx([-slope] * 2 + [slope] * 3 + [0.0] * 2)
    second_is_better = PAIR._replace(scores=(0.0, 1.0))
    _, (value, metrics), _, _ = dpo([second_is_better], [-2.0, -6.0], [-5.0, -5.0])
    assert value.item() == pytest.approx(-math.log(sigmoid(-2.0)))
    assert metrics[REWARD_ACCURACY].item() == 0.0


def test_a_ranking_averages_over_its_strictly_ordered_pairs():
    # Scores 2 > 1 = 1: two pairs, (0, 1) and (0, 2). Log-ratios 4, 2 and 0; beta 0.5.
    item = Item(responses=(1, 2, 3), scores=(2.0, 1.0, 1.0), weight=3.0)
    _, (value, metrics), _, _ = dpo([item], [-1.0, -3.0, -5.0], [-5.0, -5.0, -5.0])
    expected = -(math.log(sigmoid(1.0)) + math.log(sigmoid(2.0))) / 2
    assert value.item() == pytest.approx(3.0 * expected)
    assert metrics[REWARD_MARGIN].item() == pytest.approx(3.0 * 1.5)
    assert metrics[CHOSEN_REWARD].item() == pytest.approx(3.0 * 2.0)
    assert metrics[REJECTED_REWARD].item() == pytest.approx(3.0 * 0.5)


def test_pairs_stay_inside_an_example():
    pairs = ordered_slots(np.array([0, 0, 1, 1, 1]), np.array([1.0, 0.0, 0.0, 5.0, 3.0]))
    found = sorted(zip(pairs.chosen.tolist(), pairs.rejected.tolist(), strict=True))
    assert found == [(0, 1), (3, 2), (3, 4), (4, 2)]
    shares = dict(zip(pairs.chosen.tolist(), pairs.share.tolist(), strict=True))
    assert shares == pytest.approx({0: 1.0, 3: 1 / 3, 4: 1 / 3})


def test_an_example_drawn_twice_counts_twice():
    columns = make_columns([PAIR])
    selection = select_ranked(columns, split=None, context=99)
    loss = PairLoss(selection, columns, np.array([[-5.0, -5.0]]), PreferenceLossConfig(beta=0.5))
    once, twice = make_rows(selection, [0]), make_rows(selection, [0, 0])
    value = loss(spread([-2.0, -6.0], once), once).value.item()
    assert loss(spread([-2.0, -6.0] * 2, twice), twice).value.item() == pytest.approx(2 * value)


def test_the_sft_term_is_the_best_responses_mean_by_target_and_weight():
    items = [
        PAIR,
        Item(responses=(2, 4, 4), scores=(0.0, 1.0, 1.0), weight=3.0),
    ]
    sums = [-6.0, -9.0, -2.0, -8.0, -16.0]
    _, (without, _), _, _ = dpo(items, sums, sums)
    _, (value, _), logprobs, _ = dpo(items, sums, sums, sft_weight=0.1)
    # 6 nats over 2 targets; 8 over 4, the first of equals, three times: 3 + 3 * 2 = 9.
    assert value.item() - without.item() == pytest.approx(0.1 * 9.0)
    value.backward()
    slope = 0.5 * 0.5  # beta * sigmoid(0)
    assert logprobs.grad[0].item() == pytest.approx(-slope - 0.1 / 2)
    assert logprobs.grad[2].item() == pytest.approx(slope)


def test_ties_in_reward_count_half():
    _, (_, metrics), _, _ = dpo([PAIR], [-4.0, -4.0], [-4.0, -4.0])
    assert metrics[REWARD_ACCURACY].item() == 0.5


def test_a_worker_without_examples_adds_zero_and_still_has_a_gradient():
    columns = make_columns([PAIR])
    ranked = select_ranked(columns, split=None, context=99)
    best = select_best(columns, split=None, context=99)
    reference, config = np.zeros((1, 2)), PreferenceLossConfig(sft_weight=1.0)
    ranking = PreferenceLossConfig(name="plackett_luce", sft_weight=1.0)
    of_pairs = PairLoss(ranked, columns, reference, config)
    of_rankings = RankingLoss(ranked, columns, reference, ranking)
    empty = ((ranked, of_pairs), (ranked, of_rankings), (best, SFTLoss(best, columns)))
    for selection, loss in empty:
        rows = make_rows(selection, [], padding=3)
        logprobs = spread([], rows)
        value, metrics = loss(logprobs, rows)
        assert value.item() == 0.0
        assert tuple(metrics) == loss.metrics
        assert all(total.item() == 0.0 for total in metrics.values())
        value.backward()
        assert logprobs.grad.tolist() == [0.0] * 3


def test_the_reference_is_matched_by_position_not_by_slot():
    items = [PAIR, PAIR._replace(scores=(0.0, 1.0))]
    columns = make_columns(items)
    selection = select_ranked(columns, split=None, context=99)
    reference = np.array([[-1.0, -2.0, -3.0, -4.0]])
    loss = PairLoss(selection, columns, reference, PreferenceLossConfig(beta=1.0))
    rows = make_rows(selection, [1, 0])
    value, _ = loss(spread([-3.0, -3.0, -1.0, -2.0], rows), rows)
    # Example 1: its second response is chosen, 1 above its reference: sigmoid(1). Example 0: even.
    assert value.item() == pytest.approx(-math.log(sigmoid(1.0)) + math.log(2))


def test_per_token_losses_divide_by_the_targets_of_each_response() -> None:
    # PAIR has 2 and 3 targets. Log-ratios 4 and -3: averages 2 and -1, a gap of 3.
    loss, (value, metrics), logprobs, _ = compute(
        [PAIR], [-1.0, -8.0], [[-5.0, -5.0]], name="ipo", beta=0.25
    )
    assert value.item() == pytest.approx((3.0 - 2.0) ** 2)
    assert metrics[REWARD_MARGIN].item() == pytest.approx(0.25 * 3.0)
    value.backward()
    # 2 * (3 - 2) along each average, shared by 2 and by 3 targets: it overshot.
    assert logprobs.grad.tolist() == pytest.approx([1.0] * 2 + [-2 / 3] * 3 + [0.0] * 2)
    assert loss.gaps(np.array([-1.0, -8.0])).reward.tolist() == pytest.approx([3.0])


def test_reference_free_losses_compare_average_logprobs() -> None:
    # -4 over 2 and -3 over 3: averages -2 and -1. simpo at beta 2, gamma 0.5: 2 * -1 - 0.5.
    _, (value, metrics), _, _ = compute([PAIR], [-4.0, -3.0], None, name="simpo")
    assert value.item() == pytest.approx(-math.log(sigmoid(-2.5)))
    assert metrics[CHOSEN_REWARD].item() == pytest.approx(-4.0)
    assert metrics[REJECTED_REWARD].item() == pytest.approx(-2.0)
    assert metrics[REWARD_ACCURACY].item() == 0.0


def test_orpo_is_its_sft_term_and_the_weighted_odds_ratio() -> None:
    # Averages of log 1/2 and log 1/5: odds 1 and 1/4, and an SFT term of log 2.
    sums = [-2 * math.log(2), -3 * math.log(5)]
    _, (value, _), _, _ = compute([PAIR], sums, None, name="orpo", beta=0.5)
    assert value.item() == pytest.approx(math.log(2) + 0.5 * math.log(5 / 4))
    _, (value, _), _, _ = compute([PAIR], sums, None, name="orpo", beta=0.5, sft_weight=0.0)
    assert value.item() == pytest.approx(0.5 * math.log(5 / 4))


@pytest.mark.parametrize(
    ("name", "settings", "start"),
    [
        ("sigmoid", {}, math.log(2)),
        ("ipo", {"beta": 0.2}, 6.25),  # (1 / 0.4)^2
        ("hinge", {}, 1.0),
        ("robust", {"label_smoothing": 0.2}, math.log(2)),  # (0.8 - 0.2) / 0.6 of it
        ("apo_zero", {}, 1.0),
        ("apo_down", {}, 1.0),
        ("sppo_hard", {"beta": 0.5}, 2.0),  # 1 and -1 asked for
        ("plackett_luce", {}, math.log(2)),
    ],
)
def test_each_loss_of_log_ratios_starts_where_the_hand_says(
    name: str, settings: dict[str, float], start: float
) -> None:
    items, sums = [PAIR, PAIR._replace(weight=3.0)], [-3.0, -7.0, -1.0, -2.0]
    _, (value, metrics), logprobs, _ = compute(items, sums, [sums], name=name, **settings)
    assert value.item() == pytest.approx(4 * start)
    assert metrics[REWARD_ACCURACY].item() == 4 * 0.5
    value.backward()
    # The chosen response rises, or stays at apo_down's start; the rejected falls; by weight.
    slopes = logprobs.grad[[0, 2, 5, 7]].tolist()
    assert slopes[0] <= 0 < slopes[1]
    assert slopes[2:] == pytest.approx([3 * slopes[0], 3 * slopes[1]])


def test_a_margin_is_taken_off_its_own_examples_reward() -> None:
    # The pairs lead by 2 and by 4 at beta 0.5; the second asks for 3.5.
    items = [PAIR, PAIR._replace(margin=3.5)]
    sums, reference = [-2.0, -6.0, -1.0, -9.0], [-5.0] * 4
    _, (value, _), _, _ = dpo(items, sums, reference)
    assert value.item() == pytest.approx(-math.log(sigmoid(2.0)) - math.log(sigmoid(0.5)))
    _, (value, _), _, _ = dpo(items, sums, reference, name="hinge")
    assert value.item() == pytest.approx(0.0 + 0.5)


def test_a_ranking_is_drawn_place_by_place_and_starts_at_the_log_of_its_orders() -> None:
    item = Item(responses=(1, 2, 3), scores=(0.0, 2.0, 1.0), weight=3.0)
    _, (value, _), _, _ = compute([item], [-1.0] * 3, [[-1.0] * 3], name="plackett_luce")
    assert value.item() == pytest.approx(3 * math.log(6))  # 3! orders
    # Log-ratios log 3, 0, log 6 at beta 1, order 1, 2, 0: 1 of 10, then 6 of 9.
    sums = [-5.0 + math.log(3), -5.0, -5.0 + math.log(6)]
    _, (value, metrics), _, _ = compute(
        [PAIR, item], [-5.0, -5.0, *sums], [[-5.0] * 5], name="plackett_luce", beta=1.0
    )
    assert value.item() == pytest.approx(math.log(2) + 3 * math.log(10 * 9 / 6))
    # Pairs (1, 2), (1, 0) and (2, 0): one of three is right. The even pair counts half.
    assert metrics[REWARD_ACCURACY].item() == pytest.approx(0.5 + 3 / 3)


def test_several_references_are_merged_for_each_pair_on_its_own() -> None:
    # Shares 1/4 and 3/4, as 1/pi: chosen 4 and 2 -> 2.5, rejected 8 and 16 -> 14.
    references = [[-math.log(4), -math.log(8)], [-math.log(2), -math.log(16)]]
    settings: dict[str, Any] = {"references": ("other",), "reference_clip": 0.9, "beta": 1.0}
    loss, (value, _), _, _ = compute([PAIR], [-3.0, -4.0], references, **settings)
    gap = (-3.0 + math.log(2.5)) - (-4.0 + math.log(14))
    assert value.item() == pytest.approx(-math.log(sigmoid(gap)))
    assert loss.gaps(np.array([-3.0, -4.0])).reward.tolist() == pytest.approx([gap])
    # The model itself twice is plain DPO.
    _, (twice, _), _, _ = compute([PAIR], [-3.0, -4.0], [references[0]] * 2, **settings)
    _, (once, _), _, _ = dpo([PAIR], [-3.0, -4.0], references[0], beta=1.0)
    assert twice.item() == pytest.approx(once.item(), abs=1e-12)
