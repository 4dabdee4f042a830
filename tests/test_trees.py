from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaalign.steps.plan import Packing, Plan
from metaalign.steps.selection import select_best, select_ranked
from metaalign.steps.trees import (
    Rows,
    Sequence,
    build_rows,
    lay_out_rows,
    measure_forest,
)


def sequence(tokens: list[int], prompt_length: int = 1, row: int = 0) -> Sequence:
    return Sequence(np.array(tokens), prompt_length, row)


def seen(rows: Rows, row: int, q: int) -> list[int]:
    """Row positions that token q sees, by the one-line rule."""
    return [k for k in range(q + 1) if q < rows.subtree_end[row, k]]


def check(rows: Rows, sequences: list[Sequence]) -> None:
    """Every target's predictor sees exactly its own sequence up to itself, at its own depths."""
    length = rows.tokens.shape[1]
    for slot, each in enumerate(sequences):
        mine = rows.sequence == slot
        assert rows.target[mine].tolist() == each.tokens[each.prompt_length :].tolist()
        for offset, predictor in enumerate(rows.predictor[mine].tolist()):
            row, q = divmod(predictor, length)
            path = seen(rows, row, q)
            assert row == each.row
            assert (
                rows.tokens[row, path].tolist()
                == each.tokens[: each.prompt_length + offset].tolist()
            )
            assert rows.positions[row, path].tolist() == list(range(len(path)))


def test_the_picture_in_the_docstring():
    a, b, c, d, e = range(1, 6)
    rows = lay_out_rows(
        [sequence([a, b, d, e], 2), sequence([a, b, c], 2)], num_rows=1, num_targets=4, length=8
    )
    assert rows.tokens[0].tolist() == [a, b, c, d, e, 0, 0, 0]
    assert rows.positions[0].tolist() == [0, 1, 2, 2, 3, 0, 0, 0]
    assert rows.subtree_end[0].tolist() == [5, 5, 3, 5, 5, 6, 7, 8]
    # Slot 0 is "a b d e": b predicts d, d predicts e; slot 1 is "a b c"; one target of padding.
    assert rows.predictor.tolist() == [1, 3, 1, 0]
    assert rows.target.tolist() == [d, e, c, 0]
    assert rows.sequence.tolist() == [0, 0, 1, 2]
    assert rows.real_tokens == 5


def test_rows_do_not_share_and_do_not_see_each_other():
    sequences = [sequence([1, 2, 3], 1, 0), sequence([1, 2, 4], 1, 1), sequence([9, 8], 1, 1)]
    rows = lay_out_rows(sequences, num_rows=3, num_targets=5, length=8)
    assert rows.tokens[:, :5].tolist() == [[1, 2, 3, 0, 0], [1, 2, 4, 9, 8], [0, 0, 0, 0, 0]]
    assert rows.subtree_end[:, :5].tolist() == [[3, 3, 3, 4, 5], [3, 3, 3, 5, 5], [1, 2, 3, 4, 5]]
    check(rows, sequences)


def test_equal_sequences_and_prefixes_of_others_keep_their_own_targets():
    sequences = [
        sequence([1, 2, 3, 4], 2),
        sequence([1, 2, 3], 2),
        sequence([1, 2, 3, 4], 3),
        sequence([1, 2, 3, 4, 5, 6], 1),
    ]
    rows = lay_out_rows(sequences, num_rows=1, num_targets=9, length=8)
    assert rows.real_tokens == 6
    assert rows.sequence.tolist() == [0, 0, 1, 2, 3, 3, 3, 3, 3]
    check(rows, sequences)


def test_padding_sees_itself_alone_and_nobody_sees_padding():
    rows = lay_out_rows([sequence([5, 6, 7])], num_rows=2, num_targets=2, length=8)
    for row, q in ((0, 3), (0, 7), (1, 0), (1, 5)):
        assert seen(rows, row, q) == [q]
    for q in range(3):
        assert seen(rows, 0, q) == list(range(q + 1))


def test_a_worker_without_examples_gets_dummies_of_the_same_shape():
    rows = lay_out_rows([], num_rows=2, num_targets=3, length=64)
    assert rows.tokens.shape == (2, 64)
    assert rows.sequence.tolist() == [0, 0, 0]
    assert rows.num_sequences == rows.real_tokens == 0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(1, 2), min_size=2, max_size=7),
            st.integers(0, 2),
            st.integers(1, 9),
        ),
        min_size=1,
        max_size=9,
    )
)
def test_any_forest_gives_every_sequence_back(drawn):
    sequences = [sequence(tokens, min(cut, len(tokens) - 1), row) for tokens, row, cut in drawn]
    targets = sum(len(each.tokens) - each.prompt_length for each in sequences)
    rows = lay_out_rows(sequences, num_rows=3, num_targets=targets + 2, length=64)
    check(rows, sequences)
    prefixes = {
        (e.row, *e.tokens[: n + 1].tolist()) for e in sequences for n in range(len(e.tokens))
    }
    assert rows.real_tokens == len(prefixes)


def test_large_token_ids_sort_as_numbers():
    sequences = [
        sequence([1, 256]),
        sequence([1, 2]),
        sequence([1, 70_000]),
        sequence([1, 200_000]),
    ]
    rows = lay_out_rows(sequences, num_rows=1, num_targets=4, length=8)
    assert rows.tokens[0, :5].tolist() == [1, 2, 256, 70_000, 200_000]
    check(rows, sequences)


@pytest.mark.parametrize("layout", ["tree", "single"])
def test_rows_of_a_real_store_hold_each_sequence_of_the_step(make_store, tmp_path, layout):
    store = make_store(tmp_path / "store")
    selection = select_ranked(store.columns, split="train", context=256, group_by="meta_prompt")
    packing = Packing(selection, partial(measure_forest, store), budget=256, rows=4, layout=layout)
    plan = Plan(packing, global_batch_size=12, seed=0, epochs=1)
    found = []
    for micro in plan.layout(0, 2):
        for rank in range(2):
            rows = build_rows(store, selection, micro, rank)
            arrays = [value for value in vars(rows).values() if isinstance(value, np.ndarray)]
            assert len(arrays) == 10
            assert {array.dtype for array in arrays} == {np.dtype(np.int64)}
            assert rows.tokens.shape[0] == micro.num_rows
            assert len(rows.target) == micro.num_targets
            sequences = [
                Sequence(
                    np.concatenate([store.prompt(example), store.response(example, response)]),
                    len(store.prompt(example)),
                    row=int(rows.predictor[rows.sequence == slot][0] // rows.tokens.shape[1]),
                )
                for slot, (example, response) in enumerate(
                    zip(rows.example, rows.response, strict=True)
                )
            ]
            check(rows, sequences)
            assert (selection.example[rows.position] == rows.example).all()
            assert (np.diff(rows.occurrence) >= 0).all()
            if layout == "single":
                assert len({each.row for each in sequences}) == len(sequences)
            found += zip(rows.position.tolist(), rows.response.tolist(), strict=True)
    expected = [
        (position, response)
        for position in plan.step(0).tolist()
        for response in selection.response[
            slice(*selection.response_start[position : position + 2])
        ]
    ]
    assert sorted(found) == sorted(expected)


def test_an_example_drawn_twice_into_a_step_keeps_its_responses_apart(make_store, tmp_path):
    store = make_store(tmp_path / "store")
    selection = select_ranked(store.columns, split="train", context=256)
    packing = Packing(selection, partial(measure_forest, store), budget=512, rows=4, layout="tree")
    (micro,) = packing.lay_out(np.array([0, 0]), 1)
    rows = build_rows(store, selection, micro, 0)
    count = int(selection.response_count[0])
    assert rows.occurrence.tolist() == [0] * count + [1] * count
    assert rows.real_tokens <= selection.tokens[0]


def test_labels_cover_exactly_the_response_and_its_end_token(make_store, tmp_path):
    store = make_store(tmp_path / "store")
    selection = select_best(store.columns, split="train", context=256)
    packing = Packing(selection, partial(measure_forest, store), budget=256, rows=9, layout="tree")
    (micro,) = packing.lay_out(np.arange(6), 1)
    rows = build_rows(store, selection, micro, 0)
    template = store.template
    for slot in range(rows.num_sequences):
        labels = rows.target[rows.sequence == slot]
        assert labels.tolist() == store.response(rows.example[slot], rows.response[slot]).tolist()
        assert labels[-1] == template.eos_id
        first = rows.predictor[rows.sequence == slot][0]
        assert rows.tokens.ravel()[first] == template.control_ids["response"]
