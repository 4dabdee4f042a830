"""Plans that would train to no purpose are refused before a worker starts."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from metaalign.config import DPOConfig
from metaalign.errors import ConfigError
from metaalign.examples import Example, Response, Source, Turn
from metaalign.store.token_store import TokenStore
from metaalign.train.launch.driver import prepare_task
from metaalign.train.task import gather_materials
from tests.tiny_task import settings_of


def plain_pairs(count: int = 40, *, held_out: int = 0) -> list[Example]:
    """Pairs without a meta-prompt, as most people have them, each a conversation of its own."""
    return [
        Example(
            turns=(Turn("user", f"Question {i}?"),),
            responses=(
                Response(f"Answer {i}.", {"preference": 1.0}),
                Response("No.", {"preference": 0.0}),
            ),
            source=Source("/data/pairs.jsonl", i),
            tags={"split": "held_out" if i < held_out else "train"},
            conversation=f"pair-{i}",
        )
        for i in range(count)
    ]


@pytest.fixture
def prepare(tmp_path: Path, make_store: Callable[..., TokenStore]) -> Callable[..., Any]:
    """Plans a dpo job over some examples, as the driver does."""

    def run(examples: Sequence[Example], batch: dict[str, Any], **changed: Any) -> Any:
        make_store(tmp_path / "store", examples)
        settings = {"budget": 192, "rows": 2, **batch}
        config = settings_of(tmp_path, batch=settings, **changed)
        return prepare_task(DPOConfig.model_validate(config), "cpu")

    return run


ONE_EPOCH = {"epochs": 1}


def test_plain_pairs_grouped_by_meta_prompt_make_as_many_steps_as_alone(
    prepare: Callable[..., Any],
) -> None:
    batch = {"global_batch_size": 8, "group_by": "meta_prompt"}
    task = prepare(plain_pairs(), batch, length=ONE_EPOCH)
    assert gather_materials(task).plan.num_steps == 5  # 40 pairs, 8 a step


def test_a_group_that_no_step_should_hold_is_named_with_its_setting(
    prepare: Callable[..., Any],
) -> None:
    under_one = [replace(each, system_info="Be brief.") for each in plain_pairs()]
    batch = {"global_batch_size": 8, "group_by": "meta_prompt"}
    with pytest.raises(ConfigError) as error:
        prepare(under_one, batch, length=ONE_EPOCH)
    assert str(error.value) == (
        "dpo: batch.group_by 'meta_prompt': the group of row 0 of /data/pairs.jsonl has 40 "
        "examples, which one optimizer step would hold; the limit is 16, "
        "batch.max_group_ratio (2) times batch.global_batch_size (8). Set batch.group_by to "
        "'example', or batch.max_group_ratio to 5 to allow it"
    )


@pytest.mark.parametrize(("ratio", "refused"), [(4.9, True), (5, False)])
def test_a_group_may_be_as_large_as_the_ratio_allows(
    ratio: float, refused: bool, prepare: Callable[..., Any]
) -> None:
    under_one = [replace(each, system_info="Be brief.") for each in plain_pairs()]
    batch = {"global_batch_size": 8, "group_by": "meta_prompt", "max_group_ratio": ratio}
    if not refused:
        assert prepare(under_one, batch)
        return
    with pytest.raises(ConfigError, match=r"batch\.max_group_ratio \(4\.9\)"):
        prepare(under_one, batch)


def test_a_group_of_one_example_is_never_too_large(prepare: Callable[..., Any]) -> None:
    batch = {"global_batch_size": 8, "group_by": "conversation", "max_group_ratio": 0.01}
    assert prepare(plain_pairs(), batch)


@pytest.mark.parametrize(
    ("length", "refused"),
    [
        ({"epochs": 1}, True),
        ({"epochs": 3}, True),
        ({"epochs": 3, "max_steps": 9}, True),
        ({"epochs": 1, "max_steps": 1}, False),
        ({"epochs": None, "max_steps": 3}, False),
    ],
)
def test_an_epoch_of_one_step_is_refused_unless_the_steps_are_given(
    length: dict[str, Any], refused: bool, prepare: Callable[..., Any]
) -> None:
    if not refused:
        assert prepare(plain_pairs(), {"global_batch_size": 40}, length=length)
        return
    with pytest.raises(ConfigError, match=r"40 examples is 1 optimizer step\(s\).*max_steps="):
        prepare(plain_pairs(), {"global_batch_size": 40}, length=length)


def test_a_part_of_an_epoch_that_is_one_step_is_refused_and_two_are_not(
    prepare: Callable[..., Any],
) -> None:
    with pytest.raises(ConfigError, match=r"is 5 optimizer step\(s\), and the run 1"):
        prepare(plain_pairs(), {"global_batch_size": 8}, length={"epochs": 0.2})
    assert prepare(plain_pairs(), {"global_batch_size": 8}, length={"epochs": 0.21})
    assert prepare(plain_pairs(), {"global_batch_size": 39}, length=ONE_EPOCH)


def test_one_example_may_be_one_step(prepare: Callable[..., Any]) -> None:
    assert prepare(plain_pairs(1), {"global_batch_size": 1}, length=ONE_EPOCH)


@pytest.mark.parametrize(
    ("held_out", "setting"),
    [
        ({"every_steps": 2}, "held_out.every_steps 2"),
        ({"every_steps": 2, "best_metric": "loss"}, "held_out.best_metric 'loss'"),
    ],
)
def test_measuring_without_held_out_examples_is_refused(
    held_out: dict[str, Any], setting: str, prepare: Callable[..., Any]
) -> None:
    batch = {"global_batch_size": 8}
    with pytest.raises(ConfigError, match=f"{setting}: .*store has no held-out example"):
        prepare(plain_pairs(), batch, held_out=held_out)
    assert prepare(plain_pairs(), batch)
    assert prepare(plain_pairs(held_out=4), batch, held_out=held_out)


def test_why_the_loss_can_use_no_held_out_example_is_told(prepare: Callable[..., Any]) -> None:
    examples = plain_pairs(held_out=4)
    equal = tuple(replace(each, scores={"preference": 1.0}) for each in examples[0].responses)
    examples[:4] = [replace(each, responses=equal) for each in examples[:4]]
    with pytest.raises(ConfigError, match=r"nothing to measure: .*'no_order': 4"):
        prepare(examples, {"global_batch_size": 8}, held_out={"every_steps": 2})


def test_every_problem_of_a_plan_is_told_at_once(prepare: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match=r"(?s)length\.epochs 1: .*\n  held_out\.every_steps 2"):
        prepare(
            plain_pairs(),
            {"global_batch_size": 40},
            length=ONE_EPOCH,
            held_out={"every_steps": 2},
        )
