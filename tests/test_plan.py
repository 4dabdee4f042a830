import itertools

import numpy as np
import pytest

from metaalign.errors import PlanError
from metaalign.steps.plan import MicroLayout, Packing, Plan, Sweep, even_split
from metaalign.steps.selection import Selection, select_best, select_ranked
from tests.tiny_columns import Item, make_columns, measure_apart


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


def packing(selection: Selection, **changes) -> Packing:
    settings = {"budget": 64, "rows": 2, "layout": "tree", **changes}
    return Packing(selection, measure_apart, **settings)


def make_plan(selection: Selection, **changes) -> Plan:
    steps = {"global_batch_size": 8, "seed": 0, "epochs": 1.0, "max_steps": None}
    steps |= {name: changes.pop(name) for name in list(changes) if name in steps}
    return Plan(packing(selection, **changes), **steps)


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


def test_without_a_mixture_the_order_is_the_one_that_it_always_was():
    plan = make_plan(pairs(), epochs=2.0)
    assert plan.step(0).tolist() == [4, 34, 20, 18, 2, 3, 35, 24]
    assert plan.step(4).tolist() == [14, 29, 33, 15, 31, 16, 22, 5]
    grouped = make_plan(pairs(group_by="meta_prompt"))
    assert grouped.step(0).tolist() == [10, 11, 12, 13, 14, 20, 21, 22, 23, 24]


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


def test_rows_hold_no_more_than_their_length_and_that_no_more_than_the_budget():
    selection = pairs()
    for budget, multiple, world_size in itertools.product((31, 40, 64), (8, 128), (1, 2, 3)):
        plan = make_plan(selection, global_batch_size=37, budget=budget, length_multiple=multiple)
        micros = plan.layout(0, world_size)
        for micro in micros:
            bins = [members for rank in micro.bins_by_rank for members in rank]
            longest = max(int(selection.tokens[list(members)].sum()) for members in bins)
            assert micro.length == min(budget, -(-longest // multiple) * multiple)
            assert longest <= budget


def test_rows_are_a_multiple_of_the_world_size_and_micro_batches_like_in_height():
    selection = pairs(80)
    for world_size in (1, 2, 3, 4, 8):
        micros = make_plan(selection, global_batch_size=80, rows=3).layout(0, world_size)
        heights = [micro.num_rows for micro in micros]
        assert max(heights) <= 3
        assert max(heights) - min(heights) <= 1
        for micro in micros:
            assert {len(rank) for rank in micro.bins_by_rank} == {micro.num_rows}


def test_a_parts_sizes_differ_by_one_at_most():
    assert even_split(9, 8).tolist() == [5, 4]
    assert even_split(16, 8).tolist() == [8, 8]
    assert even_split(7, 3).tolist() == [3, 2, 2]
    assert even_split(1, 8).tolist() == [1]


def test_targets_are_dealt_evenly():
    # Eight rows of ten tokens, one example each; back and forth over two workers,
    # 9 + 6 + 5 + 2 targets against 8 + 7 + 4 + 3.
    items = [
        Item(responses=(n,), segments=(("user_query", 9 - n),)) for n in (9, 8, 7, 6, 5, 4, 3, 2)
    ]
    selection = select_best(make_columns(items), split="train", context=64)
    (micro,) = packing(selection, budget=10, rows=4).lay_out(np.arange(8), 2)
    assert micro.num_targets == 22
    assert [len(bins) for bins in micro.bins_by_rank] == [4, 4]


def test_single_rows_are_as_long_as_the_longest_sequence_beside_them():
    items = [Item(responses=(n,)) for n in (30, 2, 3, 28)]  # 5 prompt tokens each
    selection = select_best(make_columns(items), split="train", context=64)
    micros = packing(selection, layout="single", rows=1).lay_out(np.arange(4), 2)
    assert [micro.bins_by_rank for micro in micros] == [(((0,),), ((3,),)), (((2,),), ((1,),))]
    assert [micro.length for micro in micros] == [40, 8]


def test_groups_are_drawn_whole():
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


def test_a_run_resumes_by_asking_for_a_step():
    first, again = make_plan(pairs(), epochs=3.0), make_plan(pairs(), epochs=3.0)
    assert again.step(7).tolist() == first.step(7).tolist()
    assert again.layout(7, 3) == first.layout(7, 3)
    assert make_plan(pairs(), epochs=3.0, seed=1).step(7).tolist() != first.step(7).tolist()


def test_a_plan_tells_its_visits_its_epochs_steps_and_its_largest_group():
    selection = pairs(group_by="meta_prompt")  # seven groups of five and one of two
    plan = make_plan(selection, global_batch_size=8, budget=128, epochs=2.0)
    steps = [plan.step(step) for step in range(plan.num_steps)]
    assert plan.positions().tolist() == np.concatenate(steps).tolist()
    assert plan.steps_per_epoch == make_plan(selection, budget=128).num_steps
    assert plan.largest_group().tolist() == [0, 1, 2, 3, 4]
    assert make_plan(pairs(), max_steps=1).steps_per_epoch == 5
    assert make_plan(pairs()).largest_group().tolist() == [0]


@pytest.mark.parametrize(
    ("count", "epochs", "steps"),
    # ceil(epochs * count / 8): 16.4, 16 and 3.0000000000000004 examples, the last meant as 3
    [(41, 0.4, 3), (40, 0.4, 2), (30, 0.1, 1), (37, 3.0, 14)],
)
def test_the_number_of_steps_is_the_one_that_the_examples_make(count, epochs, steps):
    assert make_plan(pairs(count), epochs=epochs).num_steps == steps


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


def test_a_measurement_sweeps_a_selection_of_its_own():
    selection = pairs(9)
    sweep = Sweep(packing(selection), np.arange(len(selection)), examples_per_step=4)
    assert [len(sweep.step(step)) for step in range(sweep.num_steps)] == [4, 4, 1]
