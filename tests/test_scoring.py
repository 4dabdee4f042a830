"""A worker's log-probabilities of held-out examples are those of the model alone."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from metaalign.errors import ModelError
from metaalign.evaluate.held_out import select_held_out
from metaalign.evaluate.scoring import (
    MICRO_BATCH_TOKENS,
    PolicyEngine,
    Scorer,
    layout_and_context,
    part_logprobs,
)
from metaalign.steps.plan import Layout
from metaalign.store.token_store import TokenStore
from tests.tiny_model import plain_logprob, save_tiny_model

LIMITS = {"context": 256, "examples": None, "seed": 0}


@pytest.fixture(scope="module")
def storage(
    tmp_path_factory: pytest.TempPathFactory, make_store: Callable[..., TokenStore]
) -> Path:
    storage = tmp_path_factory.mktemp("scoring")
    store = make_store(storage / "store")
    for seed, name in enumerate(("first", "second")):
        save_tiny_model(storage / name, seed=seed, template=store.template)
    return storage


@pytest.mark.parametrize("layout", ["tree", "single"])
def test_rows_give_what_single_sequences_give(storage: Path, layout: Layout) -> None:
    store = TokenStore.open(storage / "store")
    held = select_held_out(store, **LIMITS)
    engine = PolicyEngine(str(storage / "first"), layout)
    for part in held.parts():
        found = part_logprobs(engine, store, part)
        wanted = [
            plain_logprob(storage / "first", store, row, response)
            for row, response in zip(part.response_row, part.response, strict=True)
        ]
        assert found == pytest.approx(wanted, abs=2e-4)


def test_a_worker_measures_mixed_parts_with_the_right_model(storage: Path) -> None:
    store = TokenStore.open(storage / "store")
    held = select_held_out(store, **LIMITS)
    last = len(held.parts()) - 1
    asked = [("second", last), ("first", 0), ("second", 0), ("first", last)]
    batch = {
        "folder": np.array([str(storage / name) for name, _ in asked]),
        "layout": np.array(["tree"] * len(asked)),
        "part": np.array([part for _, part in asked]),
    }
    measured = Scorer(str(storage / "store"), **LIMITS)(batch)
    for (name, number), values in zip(asked, measured["logprobs"], strict=True):
        part = held.parts()[number]
        assert len(values) == len(part.response)
        row, response = int(part.response_row[-1]), int(part.response[-1])
        wanted = plain_logprob(storage / name, store, row, response)
        assert values[-1] == pytest.approx(wanted, abs=2e-4)


def test_an_example_larger_than_a_micro_batch_is_measured_whole(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = TokenStore.open(storage / "store")
    (part, *_) = select_held_out(store, **LIMITS).parts()
    engine = PolicyEngine(str(storage / "first"), "single")
    wanted = part_logprobs(engine, store, part)
    assert MICRO_BATCH_TOKENS > 16
    monkeypatch.setattr("metaalign.evaluate.scoring.MICRO_BATCH_TOKENS", 16)
    assert part_logprobs(engine, store, part) == pytest.approx(wanted, abs=2e-4)


def test_a_models_layout_and_context_are_its_own(storage: Path) -> None:
    assert layout_and_context(storage / "first") == ("tree", 256)


def test_weights_that_cannot_be_read_are_named(storage: Path, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "cut", template=TokenStore.open(storage / "store").template)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cut: the model cannot be loaded"):
        PolicyEngine(str(folder), "tree")
