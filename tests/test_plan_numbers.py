"""The numbers of a plan are those that the loop meets, and those that follow by hand."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from metaalign.examples import Example, Response, Source, Turn
from metaalign.store.token_store import TokenStore
from metaalign.train.engines.starting import build_policy
from metaalign.train.launch import plan_numbers
from metaalign.train.launch.plan_numbers import count_plan
from metaalign.train.loop.training_loop import FILL, TOKENS
from metaalign.train.task import gather_materials
from metaalign.train.worker import TrainingRun
from tests.plain_engine import PlainEngine
from tests.tiny_task import tiny_task


class Points:
    """A tracker that remembers."""

    def __init__(self) -> None:
        self.logged: list[Mapping[str, float]] = []

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        self.logged.append({"step": step, **values})

    def flush(self) -> None:
        """Nothing is collected."""


def pairs(count: int) -> list[Example]:
    """Pairs of one shape: every token is one letter of it or a control token."""
    return [
        Example(
            turns=(Turn("user", f"Q{i:02d}"),),
            responses=(Response("xy", {"preference": 1.0}), Response("z", {"preference": 0.0})),
            source=Source("pairs.jsonl", i),
            conversation=f"c-{i}",
        )
        for i in range(count)
    ]


def test_counts_worked_by_hand(tmp_path: Path, make_store: Callable[..., TokenStore]) -> None:
    # 260 tokens are bytes and control tokens: nothing is merged. A prompt is <|user_query|> Q 0 0
    # <|response|>, 5 tokens; the responses, each with its end, 3 and 2: 10 tokens, 5 of them
    # targets. A row of at most 16 holds one pair and 6 tokens of padding.
    make_store(tmp_path / "store", pairs(10), vocabulary_size=262)
    batch = {"global_batch_size": 4, "budget": 16, "rows": 2}
    task = tiny_task(tmp_path, make_store, "dpo", batch=batch, length={"epochs": 1.5})
    numbers = count_plan(gather_materials(task), world_size=1)
    assert (numbers.examples, numbers.left_out) == (10, {})
    assert (numbers.visits, numbers.steps, numbers.steps_per_epoch) == (15, 4, 3)
    assert (numbers.tokens, numbers.targets) == (150, 75)
    assert numbers.fill == 10 / 16
    assert numbers.metrics()["plan/target_share"] == 0.5
    # Over two workers, the last of four steps has three pairs and a row of padding alone.
    assert count_plan(gather_materials(task), world_size=2).fill == 150 / (16 * 16)


def test_the_fill_is_the_one_that_training_logs(
    tmp_path: Path, make_store: Callable[..., TokenStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = tiny_task(tmp_path, make_store, "dpo", optimizer={"name": "adamw"})
    points = Points()
    engine = PlainEngine(build_policy(task, None), task.config.optimizer)
    TrainingRun(task, engine, tracker=points).run()
    logged = [point for point in points.logged if f"train/{TOKENS}" in point]
    numbers = count_plan(gather_materials(task), world_size=1)
    real = [point[f"train/{TOKENS}"] for point in logged]
    room = [point[f"train/{TOKENS}"] / point[f"train/{FILL}"] for point in logged]
    assert numbers.steps_laid_out == numbers.steps == len(logged) == 6
    assert numbers.fill == pytest.approx(sum(real) / sum(room), rel=1e-9)
    monkeypatch.setattr(plan_numbers, "_TOKENS_LAID_OUT", room[0] + 1)
    first = count_plan(gather_materials(task), world_size=1)
    assert first.steps_laid_out == 2
    assert first.fill == pytest.approx(sum(real[:2]) / sum(room[:2]), rel=1e-9)
