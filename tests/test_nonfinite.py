"""A loss that is not finite names the step, the worker and the examples."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from metaalign.errors import TrainingError
from metaalign.store.token_store import TokenStore
from metaalign.train.engines.starting import build_policy
from metaalign.train.loop.nonfinite import FiniteCheck
from metaalign.train.loop.training_loop import Loss, Reader, train
from metaalign.train.losses.pairs import SFTLoss
from metaalign.train.task import Task, gather_materials
from tests.plain_engine import PlainEngine
from tests.tiny_task import tiny_task
from tests.worker_pool import run_workers
from tests.worker_scenarios import PoisonedLoss


class OverflowingEngine(PlainEngine):
    """A gradient that overflows though every log-prob is finite."""

    def step(self, learning_rate: float) -> torch.Tensor:
        super().step(learning_rate)
        return torch.tensor(float("inf"))


@pytest.fixture
def task(tmp_path: Path, make_store: Callable[..., TokenStore]) -> Task:
    return tiny_task(tmp_path, make_store)


def error_of(task: Task, loss: Loss, engine_class: type[PlainEngine] = PlainEngine) -> str:
    store, plan, _ = gather_materials(task)
    engine = engine_class(build_policy(task, None), task.config.optimizer)
    reader = Reader(store, plan.selection)
    optimizer = task.config.optimizer
    with pytest.raises(TrainingError) as caught:
        train(engine, plan, reader, loss, optimizer=optimizer, after_step=lambda *_: False)
    return str(caught.value)


def test_the_example_whose_log_probs_are_not_finite_is_named(task: Task) -> None:
    store, plan, _ = gather_materials(task)
    position = int(plan.step(1)[2])
    row = store.columns.source_row[plan.selection.example[position]]
    loss = PoisonedLoss(SFTLoss(plan.selection, store.columns), position)
    error = error_of(task, loss)
    assert error.startswith("step 1: the loss is nan and the gradient norm ")
    assert f". Not finite on worker 0: tiny.jsonl, row {row}. Look at these examples" in error


def test_where_only_the_loss_is_not_finite_its_micro_batch_is_named(task: Task) -> None:
    store, plan, _ = gather_materials(task)
    weight = store.columns.weight.copy()
    example = int(plan.selection.example[plan.step(0)[0]])
    weight[example] = np.inf
    error = error_of(task, SFTLoss(plan.selection, replace(store.columns, weight=weight)))
    assert "step 0: the loss is inf and" in error
    assert f"tiny.jsonl, row {store.columns.source_row[example]}" in error


def test_a_gradient_alone_names_the_examples_of_the_step(task: Task) -> None:
    store, plan, _ = gather_materials(task)
    error = error_of(task, SFTLoss(plan.selection, store.columns), OverflowingEngine)
    assert (
        "the gradient norm inf. Every log-prob was finite; the step's examples: tiny.jsonl, "
        in error
    )
    assert error.count(", row ") == len(plan.step(0)) == 7


def test_many_examples_are_counted_not_listed(task: Task) -> None:
    store, plan, _ = gather_materials(task)
    engine = PlainEngine(build_policy(task, None), task.config.optimizer)
    finite_check = FiniteCheck(engine, store, plan.selection)
    finite_check.check(0, np.arange(20), loss=1.0, grad_norm=1.0)
    with pytest.raises(
        TrainingError, match=r"(tiny.jsonl, row \d+; ){7}tiny.jsonl, row \d+ and 12"
    ):
        finite_check.check(0, np.arange(20), loss=1.0, grad_norm=float("nan"))


def test_every_worker_names_the_worker_that_met_it(
    tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    task = tiny_task(tmp_path, make_store)
    first, second = run_workers("poisoned", [task], tmp_path)
    assert first == second
    (rank,) = first["rank"]
    assert f"Not finite on worker {rank}: tiny.jsonl, row {first['row']}. Look" in first["error"]
