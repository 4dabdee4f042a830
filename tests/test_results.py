"""What a run says of itself."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from metaalign.config.preference_losses import PreferenceLossConfig
from metaalign.steps.selection import select_ranked
from metaalign.store.token_store import TokenStore
from metaalign.train.loop.results import pair_order, read_result, write_result
from metaalign.train.losses.pairs import Gaps, PairLoss


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, make_store: object) -> TokenStore:
    return make_store(tmp_path_factory.mktemp("results") / "store")  # type: ignore[operator]


def gaps_of(store: TokenStore, logprobs_by: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Gaps:
    """Of all pairs, under log-probs made of each response's score and its example's size."""
    selection = select_ranked(store.columns, split="train", context=256)
    first = np.repeat(store.columns.response_start[selection.example], selection.response_count)
    score = store.columns.order_score[first + selection.response]
    size = np.repeat(selection.response_count, selection.response_count)
    reference = np.random.default_rng(0).normal(size=(1, len(score)))
    loss = PairLoss(selection, store.columns, reference, PreferenceLossConfig())
    return loss.gaps(reference[0] + logprobs_by(score, size))


def test_order_counts_what_gained_over_the_reference(store: TokenStore) -> None:
    right = pair_order(gaps_of(store, lambda score, _: score))
    wrong = pair_order(gaps_of(store, lambda score, _: -score))
    tied = pair_order(gaps_of(store, lambda score, _: 0 * score))
    count = len(select_ranked(store.columns, split="train", context=256))
    assert right == {"accuracy": 1.0, "low": 1.0, "high": 1.0, "count": count}
    assert wrong["accuracy"] == 0.0
    assert tied["accuracy"] == 0.5


def test_the_interval_holds_the_accuracy_and_a_rankings_pairs_count_once(
    store: TokenStore,
) -> None:
    found = pair_order(gaps_of(store, lambda score, size: np.where(size == 3, score, -score)))
    selection = select_ranked(store.columns, split="train", context=256)
    share = (selection.response_count == 3).mean()
    assert found["accuracy"] == pytest.approx(share)
    assert 0 < found["low"] < share < found["high"] < 1


def test_a_result_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    assert read_result(tmp_path) is None
    write_result(tmp_path, {"steps": 3})
    assert read_result(tmp_path) == {"steps": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
