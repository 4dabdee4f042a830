"""The loop: one set of examples is one step, however it is laid out."""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metaalign.config.sections import OptimizerConfig
from metaalign.store.token_store import TokenStore
from metaalign.train.engines.starting import build_policy
from metaalign.train.loop.training_loop import (
    Reader,
    Stopwatch,
    learning_rate_at,
    measure,
    read_ahead,
    train,
)
from metaalign.train.losses.pairs import SFTLoss
from metaalign.train.task import Task, gather_materials
from tests.plain_engine import PlainEngine
from tests.tiny_task import tiny_task
from tests.worker_scenarios import curve


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loop")


def engine_of(task: Task) -> PlainEngine:
    return PlainEngine(build_policy(task, None), task.config.optimizer)


def test_a_step_is_the_same_in_any_layout(
    storage: Path, make_store: Callable[..., TokenStore]
) -> None:
    batches = (
        {"global_batch_size": 7, "budget": 96, "rows": 1},
        {"global_batch_size": 7, "budget": 256, "rows": 8},
    )
    narrow, wide = (tiny_task(storage, make_store, batch=batch) for batch in batches)
    micros = [len(gather_materials(task).plan.layout(0, 1)) for task in (narrow, wide)]
    assert micros[0] > micros[1] == 1
    curves = [torch.tensor(curve(task, engine_of(task))) for task in (narrow, wide)]
    torch.testing.assert_close(curves[0], curves[1], atol=1e-5, rtol=1e-5)


def test_the_first_loss_is_the_mean_over_the_steps_target_tokens(
    storage: Path, make_store: Callable[..., TokenStore]
) -> None:
    task = tiny_task(storage, make_store)
    engine = engine_of(task)
    store, plan, _ = gather_materials(task)
    total, targets = 0.0, 0
    for position in plan.step(0):
        example = int(plan.selection.example[position])
        response = int(plan.selection.response[plan.selection.response_start[position]])
        prompt, answer = store.prompt(example), store.response(example, response)
        tokens = torch.tensor(np.concatenate([prompt, answer])).long()[None]
        with torch.no_grad():
            logprobs = engine.policy.model(tokens).logits.log_softmax(-1)[0]
        picked = logprobs[len(prompt) - 1 : -1].gather(1, tokens[0, len(prompt) :, None])
        total, targets = total - float(picked.sum()), targets + len(answer)
    assert curve(task, engine)[0][0] == pytest.approx(total / targets, abs=1e-5)


def test_steps_are_taken_from_the_start_until_told_to_stop(
    storage: Path, make_store: Callable[..., TokenStore]
) -> None:
    task = tiny_task(storage, make_store)
    store, plan, _ = gather_materials(task)
    steps: list[Any] = []

    for stop_at in (4, None):

        def after_step(step: int, metrics: dict[str, float], stop_at: int | None = stop_at) -> bool:
            steps.append((step, metrics["tokens"] > 0))
            return step == stop_at

        train(
            engine_of(task),
            plan,
            Reader(store, plan.selection),
            SFTLoss(plan.selection, store.columns),
            optimizer=task.config.optimizer,
            after_step=after_step,
            start=2,
        )
    assert steps == [(step, True) for step in (3, 4, 3, 4, 5, 6)]


def test_a_measurement_holds_every_responses_logprob_once(
    storage: Path, make_store: Callable[..., TokenStore]
) -> None:
    task = tiny_task(storage, make_store, "dpo")
    engine = engine_of(task)
    store, plan, _ = gather_materials(task)
    reader = Reader(store, plan.selection)
    together = measure(engine, plan.sweep(100), reader, None).logprobs
    apart = measure(engine, plan.sweep(1), reader, None).logprobs
    assert together.shape == plan.selection.response.shape
    assert (together < 0).all()
    np.testing.assert_allclose(together, apart, atol=1e-4)


def test_learning_rates_by_hand() -> None:
    cosine = OptimizerConfig(learning_rate=8.0, warmup_ratio=0.2, final_ratio=0.25)
    # Eleven steps, three of them warmup; then from 8 to 2, and 5 halfway between.
    rates = [learning_rate_at(step, 11, cosine) for step in range(11)]
    assert rates[:3] == pytest.approx([8 / 3, 16 / 3, 8.0])
    assert rates[3] == 8.0
    assert rates[10] == pytest.approx(2.0)
    assert (rates[6] + rates[7]) / 2 == pytest.approx(5.0)
    linear = cosine.model_copy(update={"schedule": "linear", "final_ratio": 0.0})
    assert learning_rate_at(10, 11, linear) == 0.0
    assert learning_rate_at(3, 11, linear) - learning_rate_at(4, 11, linear) == pytest.approx(8 / 7)
    constant = cosine.model_copy(update={"schedule": "constant"})
    assert learning_rate_at(10, 11, constant) == 8.0
    assert math.isfinite(learning_rate_at(0, 1, cosine))


def test_reading_ahead_keeps_the_order_and_passes_errors_on() -> None:
    assert list(read_ahead(iter(range(5)))) == [0, 1, 2, 3, 4]
    assert list(read_ahead(iter(()))) == []

    def broken() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    items = read_ahead(broken())
    assert next(items) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(items)


def test_a_stopwatch_counts_waiting_and_nothing_between(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def slow() -> Iterator[int]:
        for number in range(3):
            now[0] += 2.0
            yield number

    watch = Stopwatch()
    for _ in watch.over(slow()):
        now[0] += 10.0
    # Two seconds for each of three items, none for the ten that each was used.
    assert watch.take() == 6.0
    assert watch.take() == 0.0
