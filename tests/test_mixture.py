"""Sources drawn by weight: shares, order, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from metaalign.config.batch import BatchConfig
from metaalign.errors import PlanError
from metaalign.steps.mixture import mixed_visits, mixture_of
from metaalign.steps.plan import Plan
from metaalign.steps.selection import Selection, select_best
from metaalign.store.token_store import TokenStore
from metaalign.train.task import gather_materials, identity
from tests.test_plan import packing
from tests.tiny_columns import Item, make_columns
from tests.tiny_task import tiny_task

LARGE, SMALL = "/data/large.jsonl", "/data/small.jsonl"


def two_sources(group_by: str = "example") -> tuple[Selection, np.ndarray]:
    """Thirty examples of one file, then ten of another; two each in a conversation."""
    items = [Item(source_file=LARGE if n < 30 else SMALL, conversation=n % 20) for n in range(40)]
    columns = make_columns(items)
    selection = select_best(columns, split="train", context=64, group_by=group_by)
    return selection, columns.source_file


def make_plan(weights: dict[str, float], *, group_by: str = "example", **changes) -> Plan:
    selection, files = two_sources(group_by)
    settings = {"global_batch_size": 8, "seed": 0, "epochs": 1.0, **changes}
    return Plan(packing(selection), mixture=mixture_of(files, weights), **settings)


def visited(plan: Plan) -> np.ndarray:
    return np.concatenate([plan.step(step) for step in range(plan.num_steps)])


def test_each_source_gets_its_weights_share_of_the_visits() -> None:
    positions = visited(make_plan({"*/large*": 1, "*/small*": 3}))
    # An epoch has as many visits as before, 40: a quarter of them is 10, three quarters 30.
    assert (positions < 30).sum() == 10
    assert (positions >= 30).sum() == 30
    # Ten examples for thirty visits: three rounds, in each of which every one comes once.
    small = positions[positions >= 30]
    rounds = [small[start : start + 10].tolist() for start in (0, 10, 20)]
    assert [sorted(each) for each in rounds] == [list(range(30, 40))] * 3
    assert rounds[0] != rounds[1] != rounds[2]


def test_a_source_goes_through_its_permutations_across_epochs() -> None:
    positions = visited(make_plan({"*/large*": 1, "*/small*": 3}, epochs=3.0))
    # Ten of thirty visits an epoch: the third epoch ends the first round of the large source.
    assert sorted(positions[positions < 30].tolist()) == list(range(30))


def test_the_order_follows_from_the_seed_and_not_from_the_order_of_the_patterns() -> None:
    first = make_plan({"*/large*": 1, "*/small*": 3}, epochs=2.0)
    again = make_plan({"*/small*": 6, "*/large*": 2}, epochs=2.0)
    assert again.step(7).tolist() == first.step(7).tolist()
    other = make_plan({"*/large*": 1, "*/small*": 3}, epochs=2.0, seed=1)
    assert other.step(7).tolist() != first.step(7).tolist()
    # The sources are mixed within a step.
    assert all((first.step(step) >= 30).any() for step in range(first.num_steps))


def test_a_share_of_less_than_a_visit_comes_by_chance_and_without_bias() -> None:
    source = np.array([0, 0, 0, 0, 1])
    visits = mixed_visits(source, np.array([0.95, 0.05]), 5 * 4000, seed=0)
    # A quarter of a visit an epoch: 1000 of 4000 epochs, give or take four deviations of 27.
    assert 890 < (visits == 4).sum() < 1110


def test_a_weight_of_zero_leaves_a_source_out() -> None:
    positions = visited(make_plan({"*/large*": 0, "*/small*": 0.1}))
    assert sorted(positions.tolist()) == sorted([*range(30, 40)] * 4)


def test_a_group_never_straddles_sources() -> None:
    weights = {"*/large*": 1, "*/small*": 1}
    plan = make_plan(weights, group_by="conversation", global_batch_size=1)
    # A step is a group. Conversations 0 to 9 have two examples of the large file, 10 to 19 one of
    # each file: thirty groups, of which the fifteen visits of the small source are of one example.
    steps = [plan.step(step) >= 30 for step in range(plan.num_steps)]
    assert len(steps) == 30
    assert [step.tolist() for step in steps if step.any()] == [[True]] * 15


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"*/large*": 1, "*/smal.*": 1}, r"'\*/smal\.\*' matches no source file.*'/data/small"),
        ({"*/large*": 1}, r"'/data/small.jsonl' matches no pattern.*there are '/data/large"),
        ({"*/large*": 1, "*": 1}, r"'/data/large.jsonl' matches several patterns"),
        ({"*/large*": 0, "*/small*": 0}, r"batch.mixture: no weight is above 0"),
    ],
)
def test_weights_that_do_not_fit_the_sources_are_refused(weights, message) -> None:
    with pytest.raises(PlanError, match=message):
        make_plan(weights)


@pytest.mark.parametrize("weights", [{}, {"*": -1.0}, {"*": float("inf")}])
def test_weights_that_mean_nothing_are_refused(weights) -> None:
    with pytest.raises(ValidationError):
        BatchConfig(mixture=weights)


def test_a_run_with_another_mixture_is_another_run(
    tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    batch = {"global_batch_size": 7, "budget": 192, "rows": 2}
    plain = tiny_task(tmp_path, make_store, batch=batch)
    mixed = tiny_task(tmp_path, make_store, batch={**batch, "mixture": {"tiny*": 2.0}})
    store = gather_materials(mixed).store
    assert identity(plain, store)["batch.mixture"] is None
    assert identity(mixed, store)["batch.mixture"] == {"tiny*": 2.0}
