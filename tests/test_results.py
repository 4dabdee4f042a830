"""What a run says of itself."""

from pathlib import Path

import numpy as np
import pytest

from metaalign.data.store import TokenStore
from metaalign.steps.selection import select_ranked
from metaalign.train.results import pair_order, read_result, write_result


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, make_store: object) -> TokenStore:
    return make_store(tmp_path_factory.mktemp("results") / "store")  # type: ignore[operator]


def test_order_counts_what_gained_over_the_reference(store: TokenStore) -> None:
    selection = select_ranked(store.columns, split="train", context=256)
    first = np.repeat(store.columns.response_start[selection.example], selection.response_count)
    score = store.columns.order_score[first + selection.response]
    reference = np.random.default_rng(0).normal(size=len(score))
    order = {
        name: pair_order(selection, store.columns, policy=reference + gain, reference=reference)
        for name, gain in {"right": score, "wrong": -score, "tied": 0 * score}.items()
    }
    count = len(selection)
    assert order["right"] == {"accuracy": 1.0, "low": 1.0, "high": 1.0, "count": count}
    assert order["wrong"]["accuracy"] == 0.0
    assert order["tied"]["accuracy"] == 0.5


def test_the_interval_holds_the_accuracy_and_a_rankings_pairs_count_once(
    store: TokenStore,
) -> None:
    selection = select_ranked(store.columns, split="train", context=256)
    owner = np.repeat(np.arange(len(selection)), selection.response_count)
    first = store.columns.response_start[selection.example][owner]
    score = store.columns.order_score[first + selection.response]
    sign = np.where(selection.response_count == 3, 1.0, -1.0)[owner]
    found = pair_order(
        selection, store.columns, policy=sign * score, reference=np.zeros(len(score))
    )
    share = (selection.response_count == 3).mean()
    assert found["accuracy"] == pytest.approx(share)
    assert 0 < found["low"] < share < found["high"] < 1


def test_a_result_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    assert read_result(tmp_path) is None
    write_result(tmp_path, {"steps": 3})
    assert read_result(tmp_path) == {"steps": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
