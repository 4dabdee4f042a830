"""Rows: few, even, within the budget, and together what shares tokens."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaalign.steps.packing import _Line, pack
from tests.test_forest import distinct_prefixes, forest_of


def apart(*sizes: int) -> list[list[list[int]]]:
    """Items of these sizes that share nothing."""
    return [[[number + 1] * size] for number, size in enumerate(sizes)]


def personas(count: int, queries: int, meta_prompt: int, own: int) -> list[list[list[int]]]:
    """Items of `own` tokens below a meta-prompt, which so many of them share."""
    return [
        [[persona + 1] * meta_prompt + [1000 + persona * queries + query] * own]
        for query in range(queries)
        for persona in range(count)
    ]


def test_rows_come_out_as_even_as_the_items_allow() -> None:
    # 23 tokens in two rows.
    _, sizes = pack(forest_of(apart(2, 7, 4, 1, 6, 3)), budget=12, multiple=1)
    assert sorted(sizes.tolist()) == [11, 12]


def test_as_few_rows_as_hold_all_and_a_multiple_of_the_world_size() -> None:
    items = apart(*[10] * 12)
    for multiple, rows, longest in ((1, 3, 40), (2, 4, 30), (3, 3, 40), (5, 5, 30), (8, 8, 20)):
        _, sizes = pack(forest_of(items), budget=40, multiple=multiple)
        assert (len(sizes), sizes.max()) == (rows, longest)
    # Four of them are 44 tokens.
    assert len(pack(forest_of(apart(*[11] * 12)), budget=43, multiple=1)[1]) == 4


def test_items_of_more_than_half_a_row_stay_alone() -> None:
    row, sizes = pack(forest_of(apart(*[6] * 30)), budget=10, multiple=2)
    assert sorted(row.tolist()) == list(range(30))
    assert set(sizes.tolist()) == {6}


def test_what_shares_a_meta_prompt_lies_together() -> None:
    # Four personas of 20 + 5 * 8 = 60 tokens, two of them a row; scattered over the two rows each
    # meta-prompt would stand twice, 4 * (2 * 20 + 40) / 2 = 160 a row.
    row, sizes = pack(forest_of(personas(4, 5, 20, 8)), budget=120, multiple=1)
    assert sizes.tolist() == [120, 120]
    assert all(len(set(row[persona::4])) == 1 for persona in range(4))


def test_a_group_larger_than_a_row_is_cut_between_items() -> None:
    row, sizes = pack(forest_of(personas(1, 10, 20, 8)), budget=60, multiple=1)
    assert sizes.tolist() == [60, 60]
    assert np.bincount(row).tolist() == [5, 5]


def test_an_item_moves_to_the_row_that_holds_what_it_shares_though_another_is_shorter() -> None:
    # Rows of 50 + 60, 70 and 68 tokens. The item of 50 shares 40 with the row of 70, which it makes
    # 80; the shortest would be 118 with it, more than the 110 that the longest is.
    items = [[[1] * 40 + [2] * 10], [[3] * 60], [[1] * 40 + [4] * 30], [[5] * 68]]
    line = _Line(forest_of(items))
    row = line.level(np.array([0, 0, 1, 2])[line.order], num_rows=3)
    assert row[np.argsort(line.order)].tolist() == [1, 0, 1, 2]


@pytest.mark.parametrize("multiple", [1, 2, 3, 8])
def test_rows_of_many_items_are_even(multiple: int) -> None:
    rng = np.random.default_rng(0)
    items = [
        [[1 + n // 8] * 150 + [1000 + n] * int(rng.integers(20, 300))] for n in range(60 * multiple)
    ]
    row, sizes = pack(forest_of(items), budget=1024, multiple=multiple)
    assert len(sizes) % multiple == 0
    assert sizes.mean() / sizes.max() > 0.95
    assert sizes.tolist() == [
        distinct_prefixes([items[n] for n in np.flatnonzero(row == r)]) for r in range(len(sizes))
    ]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=8), min_size=1, max_size=3),
        min_size=1,
        max_size=20,
    ),
    st.integers(0, 10),
    st.integers(1, 4),
)
def test_any_forest_fits_whole_and_twice_the_same(items, room, multiple) -> None:
    budget = max(distinct_prefixes([item]) for item in items) + room
    row, sizes = pack(forest_of(items), budget=budget, multiple=multiple)
    assert row.shape == (len(items),)
    assert sizes.max() <= budget
    assert len(sizes) % multiple == 0
    for number, size in enumerate(sizes):
        assert size == distinct_prefixes([items[n] for n in np.flatnonzero(row == number)])
    again = pack(forest_of(items), budget=budget, multiple=multiple)
    assert again[0].tolist() == row.tolist()
