"""What log-probabilities say of a model on held-out examples, worked by hand."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metaalign.evaluate.held_out import (
    EXAMPLES_PER_PART,
    HeldOut,
    held_out_report,
    holds_pairs,
    select_held_out,
)
from metaalign.examples import Example, Response, Source, Turn
from metaalign.store.token_store import TokenStore
from tests.conftest import tiny_examples


def example(number: int, *scores: float | None, split: str = "held_out", **more: Any) -> Example:
    """An example with a response for each score, of one letter and the end token: two targets."""
    judged = [{} if score is None else {"preference": score} for score in scores]
    return Example(
        turns=(Turn("user", f"Which, {number}?"),),
        responses=tuple(map(Response, "abcd", judged)),
        source=Source("tiny.jsonl", number),
        tags={"split": split},
        conversation=str(number),
        **more,
    )


# A pair, a ranking whose middle response is best, a weighted response that nobody judged.
EXAMPLES = [example(0, 1.0, 0.0), example(1, 1.0, 2.0, 0.0), example(2, None, weight=3.0)]
REFERENCE = np.array([-3.0, -3.0, -4.0, -4.0, -4.0, -5.0])
POLICY = np.array([-2.0, -5.0, -3.0, -4.0, -6.0, -4.0])
# Log-ratios: +1 and -2; +1, 0 and -2; +1.

Select = Callable[..., HeldOut]


@pytest.fixture
def select(tmp_path: Path, make_store: Callable[..., TokenStore]) -> Select:
    def make(written: Sequence[Example], **limits: Any) -> HeldOut:
        store = make_store(tmp_path / str(len(list(tmp_path.iterdir()))), written)
        held = select_held_out(store, **{"context": 256, "examples": None, "seed": 0, **limits})
        assert held is not None
        return held

    return make


def report_of(held: HeldOut, policy: np.ndarray, reference: np.ndarray | None) -> dict[str, Any]:
    return held_out_report(held, {"after": policy}, reference, seed=0)


def test_every_metric_is_the_one_worked_by_hand(select: Select) -> None:
    report = report_of(select(EXAMPLES), POLICY, REFERENCE)
    # Best responses: -2 and -4 by weight 1, -4 by weight 3, each of two targets:
    # (2 + 4 + 12) / (2 + 2 + 6).
    assert report["sft_loss"] == {"after": 1.8, "count": 3}
    # The pair is in order. Of the ranking's pairs 0 > 1 is not, 0 > -2 and 1 > -2 are: 2 of 3.
    assert report["pairs_in_order"] == {"after": round((1 + 2 / 3) / 2, 4), "count": 2}
    # The pair's margin is 1 - -2 = 3; the ranking's (0 - 1, 0 - -2, 1 - -2) average 4 / 3.
    assert report["reward_margin"] == {"after": round((3 + 4 / 3) / 2, 4), "count": 2}


def test_without_a_reference_plain_logprobs_are_compared(select: Select) -> None:
    report = report_of(select(EXAMPLES), POLICY, None)
    # The pair: -2 > -5, 3 apart. The ranking: -4 < -3, -4 > -6, -3 > -6; -1, 2 and 3 apart.
    assert report["pairs_in_order"]["after"] == round((1 + 2 / 3) / 2, 4)
    assert report["reward_margin"]["after"] == round((3 + 4 / 3) / 2, 4)
    swapped = report_of(select(EXAMPLES), POLICY[[1, 0, 2, 3, 4, 5]], None)
    assert swapped["pairs_in_order"]["after"] == round((0 + 2 / 3) / 2, 4)


def test_other_labels_turn_the_order_and_the_margin_around(select: Select) -> None:
    there = [example(i, 1.0, 0.0) for i in range(40)]
    back = [example(i, 0.0, 1.0) for i in range(40)]
    policy, reference = np.random.default_rng(0).normal(size=(2, 80))
    first = report_of(select(there), policy, reference)
    second = report_of(select(back), policy, reference)
    order = first["pairs_in_order"]["after"]
    assert 0 < order != 0.5
    assert second["pairs_in_order"]["after"] == pytest.approx(1 - order)
    assert second["reward_margin"]["after"] == -first["reward_margin"]["after"] != 0


def test_an_interval_holds_its_value_and_narrows_with_the_examples(select: Select) -> None:
    rng = np.random.default_rng(1)
    widths = {}
    for count in (40, 640):
        policy, reference = rng.normal(-5, size=(2, 2 * count))
        report = report_of(select([example(i, 1.0, 0.0) for i in range(count)]), policy, reference)
        for metric in ("sft_loss", "pairs_in_order", "reward_margin"):
            low, high = report["intervals"][metric]["after"]
            assert low < report[metric]["after"] < high, metric
            widths.setdefault(metric, []).append(high - low)
    # Sixteen times the examples: a quarter of the width.
    for metric, (few, many) in widths.items():
        assert many / few == pytest.approx(0.25, abs=0.1), metric


def test_a_model_has_no_reward_against_itself(select: Select) -> None:
    report = held_out_report(
        select(EXAMPLES), {"before": REFERENCE, "after": POLICY}, REFERENCE, seed=0
    )
    assert report["pairs_in_order"]["before"] is None
    assert report["reward_margin"]["before"] is None
    assert report["intervals"]["reward_margin"]["before"] is None
    # (3 + 4 + 15) / 10
    assert report["sft_loss"] == {"before": 2.2, "after": 1.8, "count": 3}


def test_examples_without_pairs_have_a_loss_alone(select: Select) -> None:
    held = select([example(0, None), example(1, 1.0, 0.0, split="train")])
    assert not holds_pairs(held.store)
    report = report_of(held, np.array([-4.0, np.nan, np.nan]), None)
    assert report["sft_loss"] == {"after": 2.0, "count": 1}
    assert set(report["intervals"]) == {"sft_loss"}


def test_an_undesirable_response_is_not_what_the_loss_is_of(select: Select) -> None:
    bad = replace(example(0, None), responses=(Response("a", {}, desirable=False),))
    good = replace(example(1, None), responses=(Response("b", {}, desirable=True),))
    report = report_of(select([bad, good]), np.array([np.nan, -6.0]), None)
    assert report["sft_loss"] == {"after": 3.0, "count": 1}
    assert report["examples"]["sft_loss"]["no_best_response"] == 1


def test_a_store_that_holds_nothing_out_has_nothing_to_measure(
    tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    store = make_store(tmp_path / "store", [example(0, 1.0, 0.0, split="train")])
    limits = {"examples": None, "seed": 0}
    assert select_held_out(store, context=256, **limits) is None
    store = make_store(tmp_path / "long", [example(0, 1.0, 0.0)])
    assert holds_pairs(store)
    assert select_held_out(store, context=4, **limits) is None


def test_every_response_that_a_metric_needs_is_read_once(select: Select) -> None:
    examples = [example(i, *((1.0, 0.0), (None,))[i % 2]) for i in range(EXAMPLES_PER_PART * 3)]
    held = select(examples)
    parts = held.parts()
    assert max(map(len, parts)) == EXAMPLES_PER_PART
    assert len(parts) == 4  # 192 pairs in two, 192 single responses in two
    places = np.concatenate([held.places(part) for part in parts])
    assert sorted(places) == list(range(held.store.columns.response_start[-1]))


def test_the_seed_draws_the_examples_of_every_metric_alike(select: Select) -> None:
    examples = [replace(each, tags={"split": "held_out"}) for each in tiny_examples(48)]
    drawn = [select(examples, examples=20, seed=seed) for seed in (0, 0, 1)]
    best = [set(each.best.example) for each in drawn]
    assert len(best[0]) == 20
    assert best[0] == best[1] != best[2]
    assert set(drawn[0].ranked.example) < best[0]
    assert drawn[0].best.ledger["not_drawn"] == 28
