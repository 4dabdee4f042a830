"""The page that is printed before the first step, as its reader sees it."""

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from metaalign.examples import Example, Response, Source, Turn
from metaalign.store.token_store import TokenStore
from metaalign.train.launch.driver import PLAN_FILE, begin_run, show_plan
from metaalign.train.launch.plan_numbers import count_plan
from metaalign.train.launch.plan_page import as_text, plan_page
from metaalign.train.task import Task, gather_materials
from tests.tiny_task import tiny_task

PAIR = Example(
    system_info="Be brief.",
    user_info="I am Ana.",
    turns=(
        Turn("user", "Hi"),
        Turn("assistant", "Hello."),
        Turn("user", "<|response|>Which city?\nIn Peru."),
    ),
    responses=(
        Response("I do not know.", {"preference": 0.0}),
        Response("Lima.", {"preference": 1.0}),
    ),
    source=Source("/data/pairs.jsonl", 0),
)


def examples(one: Example, count: int = 16, *, long: int = 0) -> list[Example]:
    """Like `one`, in conversations of their own; the last `long` exceed any tiny context."""
    same = [
        replace(one, source=Source(one.source.file, i), conversation=f"c-{i}") for i in range(count)
    ]
    words = (Turn("user", "word " * 400),)
    return same[: count - long] + [replace(each, turns=words) for each in same[count - long :]]


@pytest.fixture
def page_of(tmp_path: Path, make_store: Callable[..., TokenStore]) -> Callable[..., str]:
    def shown(examples: Sequence[Example], job: str = "dpo", **changed: Any) -> str:
        make_store(tmp_path / "store", examples)
        length = {"length": {"epochs": 1}, "batch": {"global_batch_size": 4, "budget": 256}}
        task = tiny_task(tmp_path, make_store, job, **{**length, **changed})
        return as_text(page(task))

    return shown


def page(task: Task) -> Any:
    materials = gather_materials(task)
    return plan_page(task, materials, count_plan(materials, 2), "AdamW")


def test_a_pair_shows_its_tiers_and_what_the_loss_is_taken_on(page_of: Callable[..., str]) -> None:
    text = page_of(examples(PAIR))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    start = next(i for i, line in enumerate(lines) if line.startswith("row "))
    assert lines[start + 1 : start + 10] == [
        "system_info <|system_info|>Be brief.",
        "user_info <|user_info|>I am Ana.",
        "user_query <|user_query|>Hi",
        "response <|response|>Hello.<|end|>",  # said before: no loss
        "user_query <|user_query|><|response|>Which city?",
        "In Peru.",
        "response <|response|>",
        "chosen ⟦Lima.<|end|>⟧",
        "rejected ⟦I do not know.<|end|>⟧",
    ]
    assert text.count("chosen") == text.count("rejected") == 2  # two examples
    assert len({line for line in lines if line.startswith("row ")}) == 2


def test_sft_shows_the_response_that_it_trains_alone(page_of: Callable[..., str]) -> None:
    text = page_of(examples(PAIR), "sft")
    assert "trained  ⟦Lima.<|end|>⟧" in text
    assert "I do not know" not in text


def test_a_ranking_shows_scores_and_kto_its_marks(page_of: Callable[..., str]) -> None:
    third = (*PAIR.responses, Response("Oslo?", {"preference": 0.5}))
    text = page_of(examples(replace(PAIR, responses=third)))
    order = [text.index(f"score {score}  ⟦") for score in ("1", "0.5", "0")]
    assert order == sorted(order)


def test_kto_shows_marks_and_the_response_of_another_prompt(page_of: Callable[..., str]) -> None:
    answers = [(Response(f"Yes {i}.", desirable=True),) for i in range(16)]
    marked = [
        replace(each, responses=(*answer, Response(f"No {i}.", desirable=False)))
        for i, (each, answer) in enumerate(zip(examples(PAIR), answers, strict=True))
    ]
    text = page_of(marked, loss={"name": "kto"})
    assert text.index("  desirable  ⟦Yes") < text.index("undesirable  ⟦No")
    assert "mismatched  ⟦Yes" in text


def test_the_numbers_are_those_of_the_plan(page_of: Callable[..., str]) -> None:
    text = " ".join(page_of(examples(PAIR, long=3)).split())
    assert "examples 13 of 16 in the training split" in text
    assert (
        "left out 3 longer than the model's context of 256 tokens (by the tier that holds most of "
        "them: user_query 3)"
    ) in text
    assert (
        "steps 4 optimizer steps, 4 an epoch: length.epochs 1 x 13 examples / 4 a step, rounded up"
    ) in text
    assert "store has no held-out example" in text


def test_steps_that_are_given_are_told_so_and_so_are_groups(page_of: Callable[..., str]) -> None:
    batch = {"global_batch_size": 4, "budget": 256, "group_by": "conversation"}
    text = " ".join(page_of(examples(PAIR), batch=batch).split())
    assert "whole groups (batch.group_by conversation) until a step has 4 examples" in text


def test_max_steps_is_told_as_the_reason(page_of: Callable[..., str]) -> None:
    text = " ".join(page_of(examples(PAIR), length={"epochs": None, "max_steps": 9}).split())
    assert "9 optimizer steps, 4 an epoch: length.max_steps, each of at least 4 examples" in text


@pytest.mark.parametrize(
    ("every", "told"),
    [
        (None, " and after the last training"),
        (2, ", every 2 steps and after the last training"),
        (4, " and after the last; held_out.every_steps 4 adds none between training"),
    ],
)
def test_when_held_out_examples_are_measured_is_told(
    every: int | None, told: str, page_of: Callable[..., str]
) -> None:
    data = examples(PAIR)
    data += [replace(each, tags={"split": "held_out"}) for each in examples(PAIR, 3)]
    text = " ".join(page_of(data, held_out={"every_steps": every}).split())
    assert f"held out 3 examples, measured before the first step{told}" in text


def test_of_a_long_conversation_the_first_and_last_segments_are_shown(
    page_of: Callable[..., str],
) -> None:
    turns = [Turn("user" if i % 2 == 0 else "assistant", f"Turn {i}.") for i in range(21)]
    text = page_of(examples(replace(PAIR, turns=tuple(turns))))
    # Two tiers, 21 turns and the token that opens the response are 24 segments; 8 are shown.
    assert "[... 16 more segments ...]" in text
    assert "Turn 1." in text
    assert "Turn 2." not in text
    assert "Turn 18." in text


def test_a_terminal_sees_tiers_in_colour_and_targets_underlined(
    tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    make_store(tmp_path / "store", examples(PAIR))
    task = tiny_task(tmp_path, make_store, "dpo", batch={"global_batch_size": 4, "budget": 256})
    console = Console(file=io.StringIO(), force_terminal=True, width=100, record=True)
    console.print(page(task))
    styled = console.export_text(styles=True)
    assert "\x1b[37;42m<|response|>\x1b[0m\x1b[32mHello.\x1b[0m" in styled
    assert "\x1b[4;32mLima.\x1b[0m\x1b[4;37;42m<|end|>" in styled


def test_the_page_is_printed_and_kept_in_the_runs_folder(
    tmp_path: Path, make_store: Callable[..., TokenStore], capsys: pytest.CaptureFixture[str]
) -> None:
    task = begin_run(tiny_task(tmp_path, make_store, "dpo"))
    numbers = show_plan(task)
    kept = (Path(task.folder) / PLAN_FILE).read_text(encoding="utf-8")
    assert kept in capsys.readouterr().out
    assert f"{numbers.metrics()['plan/target_share']:.1%} are targets" in kept
