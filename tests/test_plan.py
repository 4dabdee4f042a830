import itertools

import numpy as np
import pytest

from metaalign.errors import PlanError
from metaalign.steps.plan import MicroLayout, Packing, Plan, Sweep, first_fit_decreasing
from metaalign.steps.selection import Selection, select_best, select_ranked
from tests.tiny_columns import Item, make_columns


def pairs(count: int = 37, group_by: str = "example") -> Selection:
    """Pairs of unequal lengths: prompts of 5 to 12 tokens, responses of 1 to 9."""
    rng = np.random.default_rng(1)
    items = [
        Item(
            responses=tuple(rng.integers(1, 10, 2).tolist()),
            scores=(1.0, 0.0),
            segments=(("user_info", 3), ("user_query", int(rng.integers(1, 9)))),
            meta_prompt=n // 5,
        )
        for n in range(count)
    ]
    return select_ranked(make_columns(items), split="train", context=64, group_by=group_by)


def make_plan(selection: Selection, **changes) -> Plan:
    settings = {
        "global_batch_size": 8,
        "budget": 64,
        "rows": 2,
        "layout": "tree",
        "seed": 0,
        "epochs": 1.0,
        "max_steps": None,
    }
    return Plan(selection, **{**settings, **changes})


def covered(micros: list[MicroLayout]) -> list[int]:
    """Positions in all bins of all workers, sorted."""
    bins = itertools.chain.from_iterable(rank for micro in micros for rank in micro.bins_by_rank)
    return sorted(itertools.chain.from_iterable(bins))


def test_an_epoch_visits_every_example_once_and_only_the_last_step_is_short():
    plan = make_plan(pairs())
    steps = [plan.step(step) for step in range(plan.num_steps)]
    assert [len(step) for step in steps] == [8, 8, 8, 8, 5]
    assert sorted(np.concatenate(steps)) == list(range(37))


def test_epochs_follow_each_other_without_a_seam():
    plan = make_plan(pairs(), epochs=2.0)
    steps = [plan.step(step) for step in range(plan.num_steps)]
    assert [len(step) for step in steps] == [8] * 9 + [2]
    visits = np.concatenate(steps)
    assert sorted(visits[:37]) == sorted(visits[37:]) == list(range(37))
    assert visits[:37].tolist() != visits[37:].tolist()
    assert (
        visits[:37].tolist()
        == np.concatenate([make_plan(pairs()).step(step) for step in range(5)]).tolist()
    )


def test_a_part_of_an_epoch_and_a_number_of_steps_end_the_run():
    assert make_plan(pairs(), epochs=0.5).num_steps == 3  # 18 examples, 8 a step
    assert make_plan(pairs(), epochs=None, max_steps=11).num_steps == 11
    assert make_plan(pairs(), epochs=1.0, max_steps=3).num_steps == 3
    assert make_plan(pairs(), epochs=1.0, max_steps=99).num_steps == 5
    assert make_plan(pairs(), epochs=0.001).num_steps == 1


@pytest.mark.parametrize("layout", ["tree", "single"])
@pytest.mark.parametrize(("rows", "budget"), [(2, 64), (7, 31), (3, 128)])
def test_a_step_holds_the_same_examples_whatever_the_layout_and_world(layout, rows, budget):
    expected = make_plan(pairs())
    plan = make_plan(pairs(), layout=layout, rows=rows, budget=budget)
    assert plan.num_steps == expected.num_steps
    for step, world_size in itertools.product(range(plan.num_steps), (1, 2, 3, 8)):
        assert plan.step(step).tolist() == expected.step(step).tolist()
        assert covered(plan.layout(step, world_size)) == sorted(expected.step(step).tolist())


@pytest.mark.parametrize("layout", ["tree", "single"])
def test_workers_get_equal_shapes_that_hold_what_they_were_dealt(layout):
    selection = pairs()
    plan = make_plan(selection, layout=layout, rows=3)
    for step, world_size in itertools.product(range(plan.num_steps), (1, 2, 5)):
        for micro in plan.layout(step, world_size):
            assert len(micro.bins_by_rank) == world_size
            assert micro.num_rows <= 3
            targets, rows = [], []
            for bins in micro.bins_by_rank:
                members = np.array([each for members in bins for each in members], dtype=int)
                targets.append(selection.targets[members].sum())
                rows.append(len(bins) if layout == "tree" else 2 * len(members))
            assert max(targets) == micro.num_targets
            assert max(rows) == micro.num_rows


def test_rows_hold_no_more_than_the_budget():
    selection = pairs()
    plan = make_plan(selection, global_batch_size=37, budget=40)
    micros = plan.layout(0, 2)
    bins = [members for micro in micros for rank in micro.bins_by_rank for members in rank]
    sizes = [selection.tokens[list(members)].sum() for members in bins]
    assert max(sizes) <= 40
    # First fit leaves at most one row half empty, so the rows are at most twice the tokens.
    assert len(bins) <= 2 * selection.tokens.sum() / 40 + 1


def test_targets_are_dealt_evenly():
    items = [Item(responses=(n,)) for n in (9, 8, 7, 6, 5, 4, 3, 2)]
    selection = select_best(make_columns(items), split="train", context=64)
    (micro,) = Packing(selection, budget=14, rows=4, layout="tree").lay_out(np.arange(8), 2)
    # Back and forth over two workers: 9 + 6 + 5 + 2 against 8 + 7 + 4 + 3.
    assert micro.num_targets == 22
    assert [len(bins) for bins in micro.bins_by_rank] == [4, 4]


def test_groups_are_drawn_whole_and_lie_side_by_side():
    selection = pairs(group_by="meta_prompt")
    plan = make_plan(selection, global_batch_size=8, budget=128)
    steps = [plan.step(step) for step in range(plan.num_steps)]
    # Seven groups of five and one of two: two whole groups make 8 or more, but where the small
    # one comes first in a step, 7 examples are not enough and a third group joins.
    assert all(len(step) >= 8 for step in steps[:-1])
    assert sorted(np.concatenate(steps)) == list(range(37))
    for step in steps:
        for group in np.unique(selection.group[step]):
            assert set(np.flatnonzero(selection.group == group)) <= set(step)
    for micro in plan.layout(0, 1):
        for members in micro.bins_by_rank[0]:
            for group in np.unique(selection.group[list(members)]):
                assert set(np.flatnonzero(selection.group == group)) <= set(members)


def test_a_groups_shared_tokens_take_room_in_a_row_once():
    segments = (("user_info", 20), ("user_query", 4))
    items = [Item(segments=segments, meta_prompt=n // 4) for n in range(8)]
    columns = make_columns(items)
    grouped = select_best(columns, split="train", context=64, group_by="meta_prompt")
    # 28 tokens each; four together 20 + 4 * 8 = 52, three 44. A fourth alone takes 28 again.
    for selection, budget, bins in ((grouped, 52, 2), (grouped, 51, 4), (grouped, 104, 1)):
        (micro,) = Packing(selection, budget=budget, rows=9, layout="tree").lay_out(np.arange(8), 1)
        assert len(micro.bins_by_rank[0]) == bins
    apart = select_best(columns, split="train", context=64)
    (micro,) = Packing(apart, budget=52, rows=9, layout="tree").lay_out(np.arange(8), 1)
    assert len(micro.bins_by_rank[0]) == 8


def test_a_group_larger_than_a_row_is_cut_between_examples():
    selection = pairs(group_by="meta_prompt")
    plan = make_plan(selection, budget=30)
    for step in range(plan.num_steps):
        assert covered(plan.layout(step, 2)) == sorted(plan.step(step).tolist())


def test_a_run_resumes_by_asking_for_a_step():
    first, again = make_plan(pairs(), epochs=3.0), make_plan(pairs(), epochs=3.0)
    assert again.step(7).tolist() == first.step(7).tolist()
    assert again.layout(7, 3) == first.layout(7, 3)
    assert make_plan(pairs(), epochs=3.0, seed=1).step(7).tolist() != first.step(7).tolist()


def test_a_sweep_shows_each_visited_example_once_in_store_order():
    plan = make_plan(pairs(), max_steps=2, epochs=5.0)
    assert sorted(np.concatenate([plan.step(0), plan.step(1)])) == plan.visited().tolist()
    sweep = plan.sweep(examples_per_step=7)
    assert sweep.num_steps == 3
    assert [len(sweep.step(step)) for step in range(3)] == [7, 7, 2]
    assert np.concatenate([sweep.step(s) for s in range(3)]).tolist() == plan.visited().tolist()
    assert covered(sweep.layout(1, 2)) == sweep.step(1).tolist()


def test_where_an_epoch_is_smaller_than_a_step_examples_come_again():
    plan = make_plan(pairs(3), epochs=4.0)
    assert [len(plan.step(step)) for step in range(plan.num_steps)] == [8, 4]
    assert covered(plan.layout(0, 2)) == sorted(plan.step(0).tolist())
    assert plan.visited().tolist() == [0, 1, 2]


def test_the_smallest_budget_that_fits_is_named():
    selection = pairs()
    largest = int(selection.tokens.max())
    with pytest.raises(PlanError, match=rf"budget \({largest - 1}\).*fits is {largest} \(128 as"):
        make_plan(selection, budget=largest - 1)
    assert make_plan(selection, budget=largest).num_steps == 5
    longest = int(selection.sequence_length.max())
    with pytest.raises(PlanError, match=f"sequences; the smallest budget that fits is {longest} "):
        make_plan(selection, budget=longest - 1, layout="single")
    assert make_plan(selection, budget=longest, layout="single").num_steps == 5


def test_single_rows_refuse_a_micro_batch_that_cannot_hold_one_example():
    with pytest.raises(PlanError, match=r"batch\.rows \(1\).*at least 2"):
        make_plan(pairs(), layout="single", rows=1)


def test_first_fit_decreasing_by_hand():
    # 7 -> bin 0, 6 -> bin 1, 4 -> bin 1 (10 of 10), 3 -> bin 0 (10), 2 -> bin 2, 1 -> bin 2.
    bins = first_fit_decreasing(np.array([2, 7, 4, 1, 6, 3]), 10)
    assert bins.tolist() == [2, 0, 1, 2, 1, 0]


def test_a_measurement_sweeps_a_selection_of_its_own():
    selection = pairs(9)
    packing = Packing(selection, budget=64, rows=2, layout="tree")
    sweep = Sweep(packing, np.arange(len(selection)), examples_per_step=4)
    assert [len(sweep.step(step)) for step in range(sweep.num_steps)] == [4, 4, 1]
