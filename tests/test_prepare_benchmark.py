"""The benchmark of the prepare job: all sides get the same rows, and all of them run."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from metaalign.examples import Example, Response, Source, Turn
from tests.benchmarks.prepare import match, memory, texts_of, trained_tokenizer, trl_row
from tests.conftest import tiny_examples

PAIR = Example(
    system_info="Be brief.",
    user_info="I am Ana.",
    turns=(Turn("user", "Hi"), Turn("assistant", "Yo"), Turn("user", "Lima?")),
    responses=(Response("No", {"preference": 0.0}), Response("Si", {"preference": 1.0})),
    source=Source("a", 0),
)


def test_every_text_counts_as_often_as_it_stands() -> None:
    assert texts_of(PAIR) == ["Be brief.", "I am Ana.", "Hi", "Yo", "Lima?", "No", "Si"]


def test_trl_gets_the_same_conversation_with_the_better_answer_chosen() -> None:
    assert trl_row(PAIR) == {
        "prompt": [
            {"role": "system", "content": "Be brief.\n\nI am Ana."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Yo"},
            {"role": "user", "content": "Lima?"},
        ],
        "chosen": [{"role": "assistant", "content": "Si"}],
        "rejected": [{"role": "assistant", "content": "No"}],
    }
    lone = replace(PAIR, system_info="", user_info="", responses=PAIR.responses[:1])
    assert trl_row(lone)["prompt"][0] == {"role": "user", "content": "Hi"}
    assert trl_row(lone)["chosen"] == trl_row(lone)["rejected"]


@pytest.fixture
def _local_ray() -> Iterator[None]:
    ray.shutdown()
    ray.init(num_cpus=2, include_dashboard=False, ignore_reinit_error=True, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("_local_ray")
def test_all_sides_run_and_memory_is_watched(tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="TRL is a dependency of the benchmarks alone")
    examples = tiny_examples(120)
    tokenizer = trained_tokenizer(tmp_path, examples)
    figures = match("tiny", examples, ("encode", "trl"), tokenizer=tokenizer, rounds=1)
    assert figures["examples"] == 120
    assert figures["texts"] == sum(len(texts_of(example)) for example in examples)
    assert set(figures["rows_per_second"]) == {"ours", "encode", "trl"}
    ray.shutdown()
    (peaks,) = memory(tmp_path, tokenizer, [50])
    assert 50 < peaks["worker"] < 2_000
    assert 50 < peaks["driver"] < 2_000
