"""A worker's log-probabilities of held-out examples are those of the model alone."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Phi3Config, Phi3ForCausalLM

from metaalign.errors import LayoutError, ModelError
from metaalign.evaluate.held_out import select_held_out
from metaalign.evaluate.inputs import shared_context
from metaalign.evaluate.scoring import (
    MICRO_BATCH_TOKENS,
    PolicyEngine,
    Scorer,
    choose_scoring_layout,
    part_logprobs,
)
from metaalign.steps.plan import Layout
from metaalign.store.token_store import TokenStore
from metaalign.template import Template
from metaalign.train.checkpoints.recipe import RECIPE_FILE
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


def test_a_llama_is_measured_as_trees(storage: Path) -> None:
    held = select_held_out(TokenStore.open(storage / "store"), **LIMITS)
    assert choose_scoring_layout(storage / "first", held) == "tree"


def save_long_rope(folder: Path, *, original: int, template: Template) -> Path:
    """A Phi-3 whose factors change where a sequence is longer than `original` tokens."""
    torch.manual_seed(0)
    config = Phi3Config(
        vocab_size=template.vocabulary_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.3,
        pad_token_id=0,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10_000.0,
            "short_factor": [1.0] * 4,
            "long_factor": [8.0] * 4,
        },
        original_max_position_embeddings=original,
        max_position_embeddings=131_072,
    )
    Phi3ForCausalLM(config).save_pretrained(folder)
    template.save(folder)
    return folder


def test_long_rope_is_measured_where_no_sequence_is_longer_than_its_first_context(
    storage: Path, tmp_path: Path
) -> None:
    store = TokenStore.open(storage / "store")
    held = select_held_out(store, **LIMITS)
    longest = max(int(part.sequence_length.max()) for part in held.parts())
    folder = save_long_rope(tmp_path / "enough", original=longest, template=store.template)
    assert choose_scoring_layout(folder, held) == "tree"
    (part, *_) = held.parts()
    found = part_logprobs(PolicyEngine(str(folder), "tree"), store, part)
    wanted = [
        plain_logprob(folder, store, row, response)
        for row, response in zip(part.response_row, part.response, strict=True)
    ]
    assert found == pytest.approx(wanted, abs=2e-4)
    crossed = save_long_rope(tmp_path / "short", original=longest - 1, template=store.template)
    with pytest.raises(LayoutError, match="phi3: layers of type"):
        choose_scoring_layout(crossed, held)


def test_a_model_trained_on_shorter_examples_is_measured_on_those(
    storage: Path, tmp_path: Path
) -> None:
    store = TokenStore.open(storage / "store")
    lengths = [part.sequence_length.max() for part in select_held_out(store, **LIMITS).parts()]
    original = int(max(lengths)) - 1
    folder = save_long_rope(tmp_path / "sft", original=original, template=store.template)
    folders = [folder, storage / "first"]
    assert shared_context(folders) == 256  # the other model's
    recipe = {"job": "sft", "config": {"model": {"context": original}}}
    (folder / RECIPE_FILE).write_text(json.dumps(recipe))
    assert shared_context(folders) == original
    held = select_held_out(store, **{**LIMITS, "context": shared_context(folders)})
    assert choose_scoring_layout(folder, held) == "tree"
    recipe["config"]["model"]["context"] = 10**6
    (folder / RECIPE_FILE).write_text(json.dumps(recipe))
    assert shared_context([folder]) == 131_072


def test_weights_that_cannot_be_read_are_named(storage: Path, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "cut", template=TokenStore.open(storage / "store").template)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cut: the model cannot be loaded"):
        PolicyEngine(str(folder), "tree")
