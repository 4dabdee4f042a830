import math

import numpy as np
import pytest
import torch
from torch import Tensor

from metaalign.steps.selection import Selection, select_best, select_ranked
from metaalign.steps.trees import Rows
from metaalign.train.losses import (
    CHOSEN_REWARD,
    REJECTED_REWARD,
    REWARD_ACCURACY,
    REWARD_MARGIN,
    DPOLoss,
    SFTLoss,
    dpo_loss,
    ordered_slots,
    sft_loss,
)
from tests.tiny_columns import Item, make_columns


def make_rows(selection: Selection, positions: list[int], padding: int = 0) -> Rows:
    """Rows of these examples; the losses read the targets' sequences and whose they are."""
    flat = [
        (occurrence, position, place)
        for occurrence, position in enumerate(positions)
        for place in range(*selection.response_start[position : position + 2])
    ]
    occurrence, position, place = np.array(flat, dtype=np.int64).reshape(-1, 3).T
    counts = [*selection.target_count[place], padding]
    empty = np.zeros((1, 8), dtype=np.int64)
    targets = np.zeros(sum(counts), dtype=np.int64)
    return Rows(
        tokens=empty,
        positions=empty,
        subtree_end=empty,
        predictor=targets,
        target=targets,
        sequence=np.repeat(np.arange(len(flat) + 1), counts),
        example=selection.example[position],
        position=position,
        response=selection.response[place],
        occurrence=occurrence,
        real_tokens=0,
    )


def spread(sums: list[float], rows: Rows, *, padding: float = -99.0) -> Tensor:
    """(T,) log-probabilities whose sums by sequence are these, and something for padding."""
    count = np.bincount(rows.sequence, minlength=len(sums) + 1)
    each = [*(total / n for total, n in zip(sums, count, strict=False)), padding]
    return torch.tensor(np.repeat(each, count), dtype=torch.float64, requires_grad=True)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


PAIR = Item(responses=(2, 3), scores=(1.0, 0.0))


def dpo(items: list[Item], sums: list[float], reference: list[float], **settings):
    """The loss of every example in a row, its sums, its log-probabilities and its rows."""
    columns = make_columns(items)
    selection = select_ranked(columns, split=None, context=99)
    rows = make_rows(selection, list(range(len(items))), padding=2)
    logprobs = spread(sums, rows)
    loss = DPOLoss(selection, columns, np.array(reference), **{"beta": 0.5, **settings})
    return loss, loss(logprobs, rows), logprobs, rows


def test_sft_loss_by_hand():
    logprobs, weight = torch.tensor([-1.0, -2.0, -4.0]), torch.tensor([1.0, 0.5, 0.0])
    assert sft_loss(logprobs=logprobs, weight=weight).item() == 2.0  # 1 * 1 + 0.5 * 2


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


def test_dpo_loss_by_hand():
    loss = dpo_loss(
        policy_chosen=torch.tensor([-10.0, -3.0]),
        policy_rejected=torch.tensor([-14.0, -1.0]),
        reference_chosen=torch.tensor([-11.0, -3.0]),
        reference_rejected=torch.tensor([-13.0, -1.0]),
        beta=0.5,
    )
    # First: policy 4 ahead, reference 2 ahead: -log sigmoid(0.5 * 2) = log(1 + 1/e) = 0.3132617.
    assert loss.tolist() == pytest.approx([0.3132617, math.log(2)])


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
    loss = DPOLoss(selection, columns, np.array([-5.0, -5.0]), beta=0.5)
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
    dpo_of_nothing = DPOLoss(ranked, columns, np.zeros(2), beta=0.5, sft_weight=1.0)
    for selection, loss in ((ranked, dpo_of_nothing), (best, SFTLoss(best, columns))):
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
    loss = DPOLoss(selection, columns, np.array([-1.0, -2.0, -3.0, -4.0]), beta=1.0)
    rows = make_rows(selection, [1, 0])
    value, _ = loss(spread([-3.0, -3.0, -1.0, -2.0], rows), rows)
    # Example 1: its second response is chosen, 1 above its reference: sigmoid(1). Example 0: even.
    assert value.item() == pytest.approx(-math.log(sigmoid(1.0)) + math.log(2))
