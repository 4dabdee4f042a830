"""Sizes that follow from the order of the tokens and from what neighbours share."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from metaalign.steps.forest import Forest, shared_prefixes, sort_sequences


def forest_of(items: Sequence[Sequence[Sequence[int]]]) -> Forest:
    """The forest of items, each one or more sequences of tokens."""
    sequences = [(number, tokens) for number, item in enumerate(items) for tokens in item]
    length = np.array([len(tokens) for _, tokens in sequences])
    flat = np.concatenate([tokens for _, tokens in sequences])
    start = np.cumsum(length) - length
    anywhere = np.zeros_like(start)
    order = sort_sequences(flat, start, length, anywhere)
    owner = np.array([number for number, _ in sequences])
    shared = shared_prefixes(flat, start[order], length[order], anywhere)
    return Forest(owner=owner[order], length=length[order], shared=shared)


def distinct_prefixes(items: Sequence[Sequence[Sequence[int]]]) -> int:
    """Nodes of a trie, counted one by one."""
    return len({tuple(s[: n + 1]) for item in items for s in item for n in range(len(s))})


def test_the_picture_in_the_docstring() -> None:
    a, b, c, d, e, x = range(1, 7)
    forest = forest_of([[[a, x]], [[a, b, c]], [[a, b, d, e]]])
    assert forest.owner.tolist() == [1, 2, 0]
    assert forest.length.tolist() == [3, 4, 2]
    assert forest.shared.tolist() == [0, 2, 1]
    assert forest.size == 6
    # "a x" and "a b c" are one part, 3 + 2 - 1 = 4 tokens; "a b d e" the other.
    assert forest.sizes(np.array([0, 0, 1]), 2).tolist() == [4, 4]
    assert forest.sizes(np.array([0, 1, 1]), 4).tolist() == [2, 5, 0, 0]


token_lists = st.lists(st.integers(1, 2), min_size=1, max_size=6)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.lists(token_lists, min_size=1, max_size=3), st.integers(0, 2))))
def test_the_size_of_every_part_is_the_number_of_its_distinct_prefixes(drawn) -> None:
    if not drawn:
        return
    items, parts = [item for item, _ in drawn], np.array([part for _, part in drawn])
    forest = forest_of(items)
    assert forest.size == distinct_prefixes(items)
    expected = [distinct_prefixes([item for item, of in drawn if of == part]) for part in range(3)]
    assert forest.sizes(parts, 3).tolist() == expected
