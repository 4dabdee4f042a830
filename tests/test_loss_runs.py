"""Whole runs of the preference losses: where they start, and that layouts do not bend them."""

import gc
import json
import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metaalign.errors import LayoutError, ModelError, PlanError
from metaalign.examples import Example, Response
from metaalign.store.token_store import TokenStore
from metaalign.train.engines.starting import build_policy
from metaalign.train.loop.training_loop import Reader, measure
from metaalign.train.task import Task, gather_materials, with_references
from tests.conftest import tiny_examples
from tests.plain_engine import PlainEngine
from tests.tiny_model import save_tiny_model
from tests.tiny_task import tiny_task
from tests.worker_pool import run_workers
from tests.worker_scenarios import open_plain, run_task

NARROW = {"global_batch_size": 7, "budget": 112, "rows": 1}
WIDE = {"global_batch_size": 7, "budget": 256, "rows": 8}

MakeStore = Callable[..., TokenStore]


def replace_mark(response: Response, good: bool) -> Response:
    return replace(response, desirable=good)


def marked(example: Example) -> Example:
    """The best response marked desirable, any other undesirable, one in four single ones bad."""
    best = max(
        range(len(example.responses)),
        key=lambda k: example.responses[k].scores.get("preference") or 0,
    )
    responses = tuple(
        replace(response, desirable=k == best and example.source.row % 4 != 2)
        for k, response in enumerate(example.responses)
    )
    return replace(example, responses=responses, weight=1.0 + example.source.row % 2)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory, make_store: MakeStore) -> Path:
    folder = tmp_path_factory.mktemp("loss_runs")
    make_store(folder / "store", [marked(example) for example in tiny_examples()])
    return folder


def task_of(
    storage: Path, make_store: MakeStore, output: str, loss: dict[str, Any], **changed: Any
) -> Task:
    settings = {"optimizer": {"learning_rate": 1e-2}, **changed}
    task = tiny_task(storage, make_store, "dpo", output=output, loss=loss, **settings)
    return with_references(task, TokenStore.open(storage / "store").template)


def run(task: Task) -> dict[str, Any]:
    return run_task(task, PlainEngine(build_policy(task, None), task.config.optimizer))


@pytest.mark.parametrize("name", ["simpo", "ipo", "plackett_luce", "kto"])
def test_a_curve_is_the_same_in_any_layout(name: str, storage: Path, make_store: MakeStore) -> None:
    loss = {"name": name, "beta": 1.0, "sft_weight": 0.5}
    if name == "kto":  # most of what rises is everybody's, and so the reference point shows
        loss |= {"undesirable_weight": 0.1, "sft_weight": 4.0}
    tasks = [
        task_of(storage, make_store, f"{name}_{number}", loss, batch=batch)
        for number, batch in enumerate((NARROW, WIDE))
    ]
    micros = [len(gather_materials(task).plan.layout(0, 1)) for task in tasks]
    assert micros[0] > micros[1]
    narrow, wide = (run(task) for task in tasks)
    assert narrow["losses"] == pytest.approx(wide["losses"], abs=1e-5)
    assert narrow["losses"][6] < narrow["losses"][1]
    ours, theirs = narrow["result"]["held_out"], wide["result"]["held_out"]
    assert ours["after"] == pytest.approx(theirs["after"], abs=1e-4)
    if name == "kto":
        assert ours["after"]["reference_point"] > 1.0


@pytest.mark.parametrize(
    ("loss", "start"),
    [
        ({"name": "ipo", "beta": 0.2}, 6.25),  # (1 / 0.4)^2
        ({"name": "hinge"}, 1.0),
        ({"name": "kto", "desirable_weight": 2.0, "undesirable_weight": 2.0}, 1.0),  # 2 * 0.5
        ({"name": "sppo_hard", "beta": 0.5}, 2.0),
    ],
)
def test_the_first_loss_is_the_one_worked_by_hand(
    loss: dict[str, Any], start: float, storage: Path, make_store: MakeStore
) -> None:
    short = {"length": {"epochs": None, "max_steps": 1}}
    task = task_of(storage, make_store, f"start_{loss['name']}", loss, **short)
    assert run(task)["losses"][1] == pytest.approx(start, abs=1e-4)


def mean_logprob(model: Any, prompt: np.ndarray, response: np.ndarray) -> float:
    """Of a response's tokens, by the model alone."""
    tokens = torch.tensor(np.concatenate([prompt, response])).long()[None]
    with torch.no_grad():
        logprobs = model(tokens).logits.log_softmax(-1)[0]
    return float(logprobs[len(prompt) - 1 : -1].gather(1, tokens[0, len(prompt) :, None]).mean())


def test_simpo_compares_the_models_own_averages_and_makes_no_reference_pass(
    tmp_path: Path, make_store: MakeStore
) -> None:
    short = {"length": {"epochs": None, "max_steps": 1}}
    task = task_of(tmp_path, make_store, "simpo", {"name": "simpo", "target_margin": 0.3}, **short)
    store, plan, _ = gather_materials(task)
    model, columns = build_policy(task, None).model, store.columns
    expected = []
    for position in plan.step(0):
        example = int(plan.selection.example[position])
        own = slice(*columns.response_start[example : example + 2])
        averages = [
            mean_logprob(model, store.prompt(example), store.response(example, number))
            for number in range(own.stop - own.start)
        ]
        pairs = [
            math.log1p(math.exp(0.3 - 2.0 * (averages[i] - averages[j])))
            for i, first in enumerate(columns.order_score[own])
            for j, second in enumerate(columns.order_score[own])
            if first > second
        ]
        expected.append(sum(pairs) / len(pairs))
    found = run(task)
    assert found["losses"][1] == pytest.approx(sum(expected) / len(expected), abs=1e-5)
    assert not (store.path / "reference").exists()
    assert found["result"]["pair_order"]["count"] > 0


def test_a_mismatched_response_is_read_behind_the_examples_own_prompt(
    storage: Path, make_store: MakeStore
) -> None:
    task = task_of(storage, make_store, "mismatched", {"name": "kto"})
    store, plan, _ = gather_materials(task)
    engine = PlainEngine(build_policy(task, None), task.config.optimizer)
    selection = plan.selection
    reader = Reader(store, selection)
    found = measure(engine, plan.sweep(100), reader, None).logprobs
    owner = np.repeat(selection.example, selection.response_count)
    places = np.flatnonzero(selection.mismatched)
    assert len(places) == len(selection)
    for place in places:
        prompt = store.prompt(int(owner[place]))
        row, number = int(selection.response_row[place]), int(selection.response[place])
        response = store.response(row, number)
        average = mean_logprob(engine.policy.model, prompt, response)
        assert found[place] == pytest.approx(average * len(response), abs=1e-4)


@pytest.fixture(scope="module")
def other(storage: Path) -> Path:
    """Another model over the same tokens."""
    template = TokenStore.open(storage / "store").template
    return save_tiny_model(storage / "other", seed=1, template=template)


def test_the_start_as_its_own_second_reference_is_plain_dpo(
    storage: Path, make_store: MakeStore
) -> None:
    plain = run(task_of(storage, make_store, "plain", {"beta": 1.0}))
    loss = {"beta": 1.0, "references": [str(storage / "initial")]}
    twice = run(task_of(storage, make_store, "twice", loss))
    assert plain["losses"][1] == pytest.approx(math.log(2), abs=1e-6)
    assert twice["losses"] == pytest.approx(plain["losses"], abs=1e-9)
    assert twice["result"]["pair_order"] == plain["result"]["pair_order"]


def test_another_models_reference_pass_is_by_its_own_weights(
    storage: Path, other: Path, make_store: MakeStore
) -> None:
    loss = {"beta": 1.0, "references": ["other"], "reference_clip": 0.9}
    task = task_of(storage, make_store, "mrpo", loss, length={"epochs": None, "max_steps": 1})
    store, plan, _ = gather_materials(task)
    policy = build_policy(task, None).model
    models = [policy, build_policy(replace(task, initial=str(other)), None).model]
    losses = []
    for position in plan.step(0):
        example = int(plan.selection.example[position])
        own = slice(*store.columns.response_start[example : example + 2])
        prompt, score = store.prompt(example), store.columns.order_score[own]
        responses = [store.response(example, number) for number in range(len(score))]
        sums = np.array(
            [[mean_logprob(model, prompt, y) * len(y) for y in responses] for model in models]
        )
        sums[1] = np.clip(sums[1], 1.9 * sums[0], 0.1 * sums[0])
        pairs = [(i, j) for i, a in enumerate(score) for j, b in enumerate(score) if a > b]
        losses.append(np.mean([mrpo_by_hand(sums[:, i], sums[:, j]) for i, j in pairs]))
    weight = plan.selection.loss_weight[plan.step(0)]
    expected = float((weight * losses).sum() / weight.sum())
    assert abs(expected - math.log(2)) > 0.01
    assert run(task)["losses"][1] == pytest.approx(expected, abs=1e-4)


def mrpo_by_hand(chosen: np.ndarray, rejected: np.ndarray) -> float:
    """The loss of a policy that is the first of two references; no clip is reached."""
    share = np.abs(chosen - rejected) / np.abs(chosen - rejected).sum()
    virtual = [-np.logaddexp(*(np.log(share) - logprobs)) for logprobs in (chosen, rejected)]
    gap = (chosen[0] - virtual[0]) - (rejected[0] - virtual[1])
    return float(np.logaddexp(0.0, -gap))


def test_a_pass_of_another_model_is_only_read_again_and_its_model_is_let_go(
    other: Path, make_store: MakeStore, tmp_path: Path
) -> None:
    loss, short = {"beta": 1.0, "references": [str(other)]}, {"epochs": None, "max_steps": 2}
    # A storage of its own, where no other test has left a pass.
    task = task_of(tmp_path, make_store, "read", loss, length=short)
    started: list[weakref.ref[Any]] = []

    @contextmanager
    def opening(task: Task, device: torch.device) -> Iterator[PlainEngine]:
        assert task.initial == str(other)
        gc.collect()
        assert all(earlier() is None for earlier in started)
        with open_plain(task, device) as engine:
            started.append(weakref.ref(engine.policy))
            yield engine

    engine = PlainEngine(build_policy(task, None), task.config.optimizer)
    found = run_task(task, engine, opening=opening)
    assert len(started) == 2  # what is trained on, and what is held out
    gc.collect()
    assert all(model() is None for model in started)
    engine = PlainEngine(build_policy(task, None), task.config.optimizer)
    again = replace(task, config=task.config.model_copy(update={"output": "read_again"}))
    assert run_task(again, engine, opening=opening)["losses"] == found["losses"]
    assert len(started) == 2


def test_two_workers_train_as_one_process_does(
    storage: Path, other: Path, make_store: MakeStore, tmp_path: Path
) -> None:
    losses = {
        "kto": {"name": "kto", "beta": 1.0, "undesirable_weight": 0.1, "sft_weight": 4.0},
        "mrpo": {"beta": 1.0, "references": [str(other)]},
        "simpo": {"name": "simpo"},
    }
    alone = [task_of(storage, make_store, f"{name}_of_one", losses[name]) for name in losses]
    # A storage of their own, so that they make their own passes.
    make_store(tmp_path / "store", [marked(example) for example in tiny_examples()])
    together = [task_of(tmp_path, make_store, f"{name}_of_two", losses[name]) for name in losses]
    first, second = run_workers("whole_run", together, tmp_path)
    for task, theirs, same in zip(alone, first, second, strict=True):
        ours = run(task)
        found = {int(step): loss for step, loss in theirs["losses"].items()}
        assert found == pytest.approx(ours["losses"], abs=1e-5)
        assert theirs["result"]["loss"] == same["result"]["loss"]
        after = ours["result"]["held_out"]["after"]
        assert theirs["result"]["held_out"]["after"] == pytest.approx(after, abs=1e-4)


@pytest.mark.parametrize("name", ["ipo", "orpo", "apo_zero", "plackett_luce", "kto"])
def test_a_margin_that_the_loss_does_not_know_is_refused(
    name: str, tmp_path: Path, make_store: MakeStore
) -> None:
    examples = [replace(marked(example), margin=0.5) for example in tiny_examples()]
    make_store(tmp_path / "store", examples)
    task = task_of(tmp_path, make_store, "refused", {"name": name})
    with pytest.raises(PlanError, match=rf"loss.name '{name}' uses no margin, but (\d+) of \1"):
        gather_materials(task)
    gather_materials(task_of(tmp_path, make_store, "taken", {"name": "hinge"}))


def test_a_reference_with_other_tokens_is_refused(
    storage: Path, tmp_path: Path, make_store: MakeStore
) -> None:
    def task(path: Path | str) -> Task:
        return task_of(storage, make_store, "refused", {"references": [str(path)]})

    with pytest.raises(ModelError, match=r"loss\.references '/no/such': there is no such folder"):
        task("/no/such")
    stranger = save_tiny_model(tmp_path / "stranger")
    with pytest.raises(ModelError, match=r"loss.references .* has another tokenizer"):
        task(stranger)
    template = TokenStore.open(storage / "store").template
    small = save_tiny_model(tmp_path / "small", template=template)
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps({**config, "vocab_size": 7}))
    with pytest.raises(ModelError, match="has a vocabulary of 7 rows and the token store needs"):
        task(small)


def test_a_reference_of_another_context_or_layout_bends_the_plan(
    storage: Path, tmp_path: Path, make_store: MakeStore
) -> None:
    template = TokenStore.open(storage / "store").template
    short = save_tiny_model(tmp_path / "short", context=60, template=template)
    assert task_of(storage, make_store, "short", {"references": [str(short)]}).context == 60
    config = json.loads((short / "config.json").read_text())
    convolution = {"model_type": "lfm2", "layer_types": ["conv", "full_attention"]}
    (short / "config.json").write_text(json.dumps({**config, **convolution}))
    with pytest.raises(LayoutError, match="conv"):
        task_of(storage, make_store, "conv", {"references": [str(short)]})
