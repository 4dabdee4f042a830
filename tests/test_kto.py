"""KTO: the reference point is the whole step's, and only marked responses are judged."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from metaalign.config.preference_losses import PreferenceLossConfig
from metaalign.steps.selection import Selection, select_labelled
from metaalign.steps.trees import Rows
from metaalign.train.loop.training_loop import LooksAhead
from metaalign.train.losses.kto import (
    DESIRABLE_REWARD,
    REFERENCE_POINT,
    UNDESIRABLE_REWARD,
    KTOLoss,
)
from metaalign.train.losses.pairs import LossSum
from tests.loss_rows import make_rows, spread
from tests.tiny_columns import Item, make_columns

GOOD = Item(responses=(2,), desirable=(1,), conversation=1)
BAD = Item(responses=(4,), desirable=(0,), conversation=2)
REFERENCE = -10.0
"""Summed log-prob of every response under the reference below."""


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def build(items: list[Item], **settings: float) -> tuple[Selection, KTOLoss]:
    columns = make_columns(items)
    selection = select_labelled(columns, split=None, context=99)
    reference = np.full((1, len(selection.response)), REFERENCE)
    config = PreferenceLossConfig.model_validate({"name": "kto", "beta": 0.5, **settings})
    return selection, KTOLoss(selection, columns, reference, config)


def judge(
    selection: Selection, loss: KTOLoss, parts: list[tuple[list[int], list[float]]]
) -> tuple[LossSum, list[Tensor], list[Rows]]:
    """Sums over micro-batches of one step: positions and the log-ratio of each sequence."""
    rows = [make_rows(selection, positions, padding=2) for positions, _ in parts]
    logprobs = [
        spread([REFERENCE + ratio for ratio in ratios], each)
        for (_, ratios), each in zip(parts, rows, strict=True)
    ]
    loss.look_ahead(
        [(values.detach(), each) for values, each in zip(logprobs, rows, strict=True)],
        lambda sums: sums,
    )
    found = [loss(values, each) for values, each in zip(logprobs, rows, strict=True)]
    value = torch.stack([part.value for part in found]).sum()
    names = loss.metrics
    return (
        LossSum(value, {n: torch.stack([p.metrics[n] for p in found]).sum() for n in names}),
        (logprobs),
        rows,
    )


def test_each_response_is_judged_against_the_mean_of_the_mismatched_ones() -> None:
    selection, loss = build([GOOD, BAD])
    assert isinstance(loss, LooksAhead)
    # Each example's own response, then the other's: z0 = (2 + 0) / 2 = 1.
    (value, metrics), (logprobs,), _ = judge(selection, loss, [([0, 1], [3.0, 2.0, -1.0, 0.0])])
    # Gains of 0.5 * (3 - 1) for the good response and 0.5 * (-1 - 1) for the bad.
    assert value.item() == pytest.approx((1 - sigmoid(1.0)) + (1 - sigmoid(1.0)))
    assert metrics[DESIRABLE_REWARD].item() / 2 == pytest.approx(1.5)
    assert metrics[UNDESIRABLE_REWARD].item() / 2 == pytest.approx(-0.5)
    assert metrics[REFERENCE_POINT].item() / 2 == pytest.approx(1.0)
    value.backward()
    slope = 0.5 * sigmoid(1.0) * sigmoid(-1.0)
    # The good response rises, the bad one falls, the mismatched and padding stay.
    expected = [-slope] * 2 + [0.0] * 4 + [slope] * 4 + [0.0] * 2 + [0.0] * 2
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx(expected)


def test_the_reference_point_is_the_steps_however_it_is_cut() -> None:
    selection, loss = build([GOOD, BAD, GOOD._replace(weight=3.0)])
    ratios = [3.0, 2.0, -1.0, -4.0, 0.5, 6.0]
    whole, _, _ = judge(selection, loss, [([0, 1, 2], ratios)])
    parts = [([1], ratios[2:4]), ([], []), ([2, 0], ratios[4:6] + ratios[0:2])]
    cut, _, _ = judge(selection, loss, parts)
    assert cut.value.item() == pytest.approx(whole.value.item())
    for name in loss.metrics:
        assert cut.metrics[name].item() == pytest.approx(whole.metrics[name].item())
    # By weight: (2 - 4 + 3 * 6) / 5.
    assert whole.metrics[REFERENCE_POINT].item() / 5 == pytest.approx(3.2)
    # Good rewards by weight: 0.5 * (3 + 3 * 0.5) / 4.
    assert whole.metrics[DESIRABLE_REWARD].item() / 5 == pytest.approx(0.5 * 4.5 / 4)
    assert whole.metrics[UNDESIRABLE_REWARD].item() / 5 == pytest.approx(0.5 * -1.0)


def test_the_workers_sums_meet_in_the_reference_point() -> None:
    selection, loss = build([GOOD, BAD])
    own, other = make_rows(selection, [0]), make_rows(selection, [1])
    of_other = spread([REFERENCE - 1.0, REFERENCE + 4.0], other)
    told: list[Tensor] = []
    loss.look_ahead([(of_other, other)], lambda sums: told.append(sums.clone()) or sums)
    logprobs = spread([REFERENCE + 3.0, REFERENCE + 2.0], own)
    loss.look_ahead([(logprobs, own)], lambda sums: sums + told[0])
    # z0 = (2 + 4) / 2 = 3, so the good response gained nothing.
    assert loss(logprobs, own).value.item() == pytest.approx(0.5)


def test_a_reference_point_below_zero_is_zero() -> None:
    selection, loss = build([GOOD, BAD])
    (value, metrics), _, _ = judge(selection, loss, [([0, 1], [0.0, -5.0, 0.0, -7.0])])
    assert value.item() == pytest.approx(1.0)
    assert metrics[REFERENCE_POINT].item() == 0.0


def test_an_examples_responses_share_its_weight_and_sides_have_their_own() -> None:
    both = Item(responses=(2, 3), scores=(None, None), desirable=(0, 1), conversation=1, weight=3.0)
    selection, loss = build([both, BAD], desirable_weight=2.0, undesirable_weight=0.5)
    (value, _), _, _ = judge(selection, loss, [([0, 1], [0.0] * 5)])
    # Half of each sigmoid: weight 3 over two responses of 0.5 and 2, weight 1 of 0.5.
    assert value.item() == pytest.approx(0.5 * (3 * (0.5 + 2.0) / 2 + 0.5))
    assert selection.loss_weight.tolist() == [3.0, 1.0]


def test_the_sft_term_is_of_desirable_responses_by_target() -> None:
    selection, without = build([GOOD, BAD])
    _, loss = build([GOOD, BAD], sft_weight=0.1)
    parts = [([0, 1], [3.0, 2.0, -1.0, 0.0])]
    difference = judge(selection, loss, parts)[0].value - judge(selection, without, parts)[0].value
    assert difference.item() == pytest.approx(0.1 * 7.0 / 2)  # -10 + 3, over two targets


def test_a_worker_without_examples_adds_zero_and_still_has_a_gradient() -> None:
    selection, loss = build([GOOD, BAD], sft_weight=1.0)
    (value, metrics), logprobs, _ = judge(selection, loss, [([0], [1.0, 1.0]), ([], [])])
    assert tuple(metrics) == loss.metrics
    value.backward()
    assert logprobs[1].grad is not None
    assert logprobs[1].grad.tolist() == [0.0] * 2
