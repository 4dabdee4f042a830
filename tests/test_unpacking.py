"""What is read back from rows is what the store holds."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from metaalign.steps.plan import Packing
from metaalign.steps.selection import select_ranked
from metaalign.steps.trees import Sequence, build_rows, lay_out_rows, measure_forest
from metaalign.steps.unpacking import unpack

A, B, C, D, E = range(1, 6)


def picture():
    """A row of "a b | d e" and "a b | c": what stands behind the bar is predicted."""
    pair = [Sequence(np.array(tokens), 2, 0) for tokens in ([A, B, D, E], [A, B, C])]
    return lay_out_rows(pair, num_rows=1, num_targets=4, length=8)


def test_a_branch_is_read_without_the_other():
    rows = picture()
    first, second = unpack(rows, 0), unpack(rows, 1)
    assert first.tokens.tolist() == [A, B, D, E]
    assert first.is_target.tolist() == [False, False, True, True]
    assert second.tokens.tolist() == [A, B, C]
    assert second.is_target.tolist() == [False, False, True]


def test_a_wrong_mask_is_seen():
    rows = picture()
    # Targets one token too early: "b" would be predicted as "d", and "d" as "e".
    shifted = replace(rows, predictor=np.array([0, 1, 1, 0]))
    assert unpack(shifted, 0).tokens.tolist() == [A, D, E]
    assert unpack(shifted, 0).is_target.tolist() == [False, True, True]
    # Without the end of its branch, "d" also sees "c": a token too many.
    leaking = replace(rows, subtree_end=np.array([[5, 5, 5, 5, 5, 6, 7, 8]]))
    assert unpack(leaking, 0).tokens.tolist() == [A, B, D, E, E]


@pytest.mark.parametrize("layout", ["tree", "single"])
def test_every_sequence_of_a_real_store_comes_back(make_store, tmp_path, layout):
    store = make_store(tmp_path / "store")
    selection = select_ranked(store.columns, split="train", context=256, group_by="meta_prompt")
    packing = Packing(selection, partial(measure_forest, store), budget=256, rows=4, layout=layout)
    for micro in packing.lay_out(np.arange(12), 2):
        for rank in range(2):
            rows = build_rows(store, selection, micro, rank)
            for slot in range(rows.num_sequences):
                prompt = store.prompt(rows.example[slot]).tolist()
                response = store.response(rows.example[slot], rows.response[slot]).tolist()
                found = unpack(rows, slot)
                assert found.tokens.tolist() == prompt + response
                assert found.is_target.tolist() == [False] * len(prompt) + [True] * len(response)
