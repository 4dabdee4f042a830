"""The reference pass: equal to the policy at its start, and taken up again where it was killed."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metaalign.config.preference_losses import PreferenceLossConfig
from metaalign.store.token_store import TokenStore
from metaalign.train.engines.starting import build_policy
from metaalign.train.loop.reference_pass import reference_fingerprint, reference_logprobs
from metaalign.train.loop.training_loop import Reader, measure
from metaalign.train.losses.pairs import PairLoss
from metaalign.train.model.policy import TensorRows
from metaalign.train.task import Materials, Task, gather_materials
from tests.plain_engine import PlainEngine
from tests.tiny_task import tiny_task
from tests.worker_pool import run_workers
from tests.worker_scenarios import run_task


class CountingEngine(PlainEngine):
    """Counts its forward passes, and breaks at one of them."""

    passes = 0
    break_at: int | None = None

    def forward(self, rows: TensorRows, *, last: bool = True) -> Tensor:
        self.passes += 1
        if self.passes == self.break_at:
            raise KeyboardInterrupt
        return super().forward(rows, last=last)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory, make_store: Callable[..., TokenStore]) -> Task:
    return tiny_task(tmp_path_factory.mktemp("reference"), make_store, "dpo")


@pytest.fixture
def engine(task: Task) -> CountingEngine:
    return CountingEngine(build_policy(task, None), task.config.optimizer)


def reader_of(materials: Materials) -> Reader:
    return Reader(materials.store, materials.plan.selection)


def test_a_killed_pass_is_taken_up_and_a_finished_one_only_read(
    task: Task, engine: CountingEngine, tmp_path: Path
) -> None:
    materials = gather_materials(task)
    sweep, reader = materials.plan.sweep(4), reader_of(materials)
    whole = reference_logprobs(engine, sweep, reader, tmp_path / "whole")
    in_one_go, engine.passes = engine.passes, 0

    engine.break_at = in_one_go - 1
    with pytest.raises(KeyboardInterrupt):
        reference_logprobs(engine, sweep, reader, tmp_path / "killed")
    shards = len(list((tmp_path / "killed").glob("*.npy")))
    assert 0 < shards < sweep.num_steps

    engine.passes, engine.break_at = 0, None
    again = reference_logprobs(engine, sweep, reader, tmp_path / "killed")
    assert 0 < engine.passes < in_one_go
    np.testing.assert_array_equal(again, whole)

    engine.passes = 0
    np.testing.assert_array_equal(
        reference_logprobs(engine, sweep, reader, tmp_path / "killed"), whole
    )
    assert engine.passes == 0


def test_what_the_plan_never_visits_has_no_reference(
    make_store: Callable[..., TokenStore], task: Task, engine: CountingEngine, tmp_path: Path
) -> None:
    short = {"length": {"epochs": None, "max_steps": 1}}
    one_step = tiny_task(Path(task.config.storage), make_store, "dpo", **short)
    materials = gather_materials(one_step)
    sweep = materials.plan.sweep(4)
    found = reference_logprobs(engine, sweep, reader_of(materials), tmp_path)
    selection = materials.plan.selection
    visited = np.isin(np.arange(len(selection)), materials.plan.step(0))
    assert 0 < visited.sum() < len(selection)
    np.testing.assert_array_equal(~np.isnan(found), np.repeat(visited, selection.response_count))


def test_dpo_starts_at_log_2(task: Task, engine: CountingEngine, tmp_path: Path) -> None:
    materials = gather_materials(task)
    plan, reader = materials.plan, reader_of(materials)
    # Another cut into micro-batches than the steps': rows hold other neighbours.
    reference = reference_logprobs(engine, plan.sweep(4), reader, tmp_path)
    config = PreferenceLossConfig(beta=1.0)
    loss = PairLoss(plan.selection, materials.store.columns, reference[None], config)
    measured = measure(engine, plan.sweep(1000), reader, loss)
    assert measured.metrics["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert np.nanmax(np.abs(measured.logprobs - reference)) < 1e-4


def test_the_fingerprint_knows_weights_and_examples(task: Task) -> None:
    plan = gather_materials(task).plan
    parts = {"weights": "w", "dtype": "float32"}
    same = reference_fingerprint(plan.sweep(4), **parts)
    assert reference_fingerprint(plan.sweep(4), **parts) == same
    assert reference_fingerprint(plan.sweep(5), **parts) != same
    assert reference_fingerprint(plan.sweep(4), **{**parts, "weights": "v"}) != same


def test_two_workers_train_dpo_as_one_process_does(
    task: Task, make_store: Callable[..., TokenStore], tmp_path: Path
) -> None:
    alone = tiny_task(Path(task.config.storage), make_store, "dpo", output="alone")
    found = run_workers("whole_run", [task], tmp_path)
    expected: dict[str, Any] = run_task(
        alone, PlainEngine(build_policy(alone, None), alone.config.optimizer)
    )
    (first,) = found[0]
    losses = {int(step): loss for step, loss in first["losses"].items()}
    assert losses[1] == pytest.approx(math.log(2), abs=1e-6)
    assert losses == pytest.approx(expected["losses"], abs=1e-5)
    ours, theirs = expected["result"]["held_out"], first["result"]["held_out"]
    assert theirs["before"]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert theirs["after"] == pytest.approx(ours["after"], abs=1e-4)
    assert first["result"]["pair_order"] == pytest.approx(expected["result"]["pair_order"])
    assert not torch.isnan(torch.tensor(first["result"]["loss"]))


def test_a_closed_reference_holds_no_parameter_and_disturbs_nobody(
    task: Task, make_store: Callable[..., TokenStore], tmp_path: Path
) -> None:
    storage = Path(task.config.storage)
    stages = [
        tiny_task(storage, make_store, "dpo", zero=zero)
        for zero in ({"persistence_threshold": 0}, {"persistence_threshold": 10_000}, {"stage": 2})
    ]
    for found in run_workers("ask_another", stages, tmp_path):
        for apart, held, moved in found:
            assert apart < 1e-5
            assert held == 0
            assert moved < 1e-5
