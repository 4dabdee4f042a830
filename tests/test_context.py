"""How many tokens a model takes, wherever that is asked: training, export, generation."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    AutoConfig,
    BloomConfig,
    DbrxConfig,
    Gemma3Config,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MptConfig,
    RwkvConfig,
    WhisperConfig,
    XLNetConfig,
)

from metaalign.config import ExportConfig, SFTConfig
from metaalign.config.sections import ModelConfig
from metaalign.errors import ModelError
from metaalign.generate.embedded import EmbeddedEngine, Sampling
from metaalign.store.token_store import TokenStore
from metaalign.train.engines.starting import build_policy
from metaalign.train.export import run_export
from metaalign.train.launch.driver import begin_run, prepare_task
from metaalign.train.model.context import context_of, state_context, stated_context
from metaalign.train.model.loading import architecture_config
from metaalign.train.task import gather_materials
from tests.plain_engine import PlainEngine
from tests.tiny_task import ARCHITECTURE, settings_of
from tests.worker_scenarios import run_task

BLOOM = {"model_type": "bloom", "hidden_size": 16, "n_layer": 2, "n_head": 4}
MAMBA = {"model_type": "mamba", "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}


@pytest.mark.parametrize(
    ("config", "context"),
    [
        (LlamaConfig(max_position_embeddings=77), 77),
        (GPT2Config(n_positions=78), 78),
        (MptConfig(max_seq_len=79), 79),
        (DbrxConfig(max_seq_len=80), 80),
        (RwkvConfig(context_length=81), 81),
        (WhisperConfig(max_target_positions=82), 82),
        (AutoConfig.for_model("bloom", seq_length=83), 83),  # as published
        (Gemma3Config(text_config={"max_position_embeddings": 84}), 84),
        (BloomConfig(), None),
        (MambaConfig(), None),
        (XLNetConfig(), None),  # says -1
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_the_context_is_found_under_every_name_that_architectures_give_it(
    config: Any, context: int | None
) -> None:
    assert stated_context(config) == context
    if context is not None:
        assert context_of(config) == context


def test_the_context_of_an_architecture_is_the_one_it_is_given() -> None:
    assert context_of(architecture_config(ModelConfig(architecture=ARCHITECTURE))) == 256


def test_a_setting_lowers_a_context_and_never_raises_it() -> None:
    config = LlamaConfig(max_position_embeddings=77)
    assert context_of(config, 70) == 70
    with pytest.raises(ModelError, match=r"model\.context 78: the model takes 77 tokens"):
        context_of(config, 78)
    with pytest.raises(ModelError, match=r"bloom: .*set model\.context"):
        context_of(BloomConfig())
    assert context_of(BloomConfig(), 5) == 5


def test_a_context_is_written_where_none_is_stated(tmp_path: Path) -> None:
    for config, expected in ((BloomConfig(), 60), (GPT2Config(n_positions=99), 99)):
        state_context(config, 60)
        config.save_pretrained(tmp_path)
        assert stated_context(AutoConfig.from_pretrained(tmp_path)) == expected


def config_of(storage: Path, model: dict[str, Any], output: str = "sft") -> SFTConfig:
    batch = {"global_batch_size": 7, "budget": 192, "rows": 8}
    length = {"epochs": None, "max_steps": 1}
    changed = {"model": model, "batch": batch, "length": length, "output": output}
    return SFTConfig.model_validate(settings_of(storage, **changed))


@pytest.mark.parametrize("architecture", [BLOOM, MAMBA], ids=["bloom", "mamba"])
def test_a_model_without_a_position_table_is_trained_exported_and_asked(
    architecture: dict[str, Any], tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    make_store(tmp_path / "store")
    with pytest.raises(ModelError, match=r"set model\.context"):
        prepare_task(config_of(tmp_path, {"architecture": architecture}), "cpu")
    assert not list(tmp_path.glob("*initial*"))
    model = {"architecture": architecture, "context": 150}
    task = begin_run(prepare_task(config_of(tmp_path, model), "cpu"))
    assert task.context == 150
    run_task(task, PlainEngine(build_policy(task, None), task.config.optimizer))
    folder = run_export(ExportConfig(storage=str(tmp_path), run="sft", output="out"))
    assert json.loads((folder / "config.json").read_text())["max_position_embeddings"] == 150
    engine = EmbeddedEngine(folder)
    assert engine.context == 150
    answer = engine.generate([[20] * 148], Sampling(max_tokens=50))[0]
    assert len(answer.tokens) <= 2
    with pytest.raises(ModelError, match="context of 150"):
        engine.generate([[20] * 150], Sampling(max_tokens=1))
    # The export says what the setting said: the next stage need not be told.
    again = prepare_task(config_of(tmp_path, {"path": "out"}, "again"), "cpu")
    assert (again.context, again.initial) == (150, str(folder))


def test_a_pretrained_folder_that_states_none_is_linked_with_the_setting_in_its_config(
    tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    make_store(tmp_path / "store")
    model = {"architecture": BLOOM, "context": 150}
    made = Path(prepare_task(config_of(tmp_path, model), "cpu").initial)
    stated = json.loads((made / "config.json").read_text())
    silent = {key: value for key, value in stated.items() if key != "max_position_embeddings"}
    (made / "config.json").write_text(json.dumps(silent))
    task = prepare_task(config_of(tmp_path, {"path": str(made), "context": 140}), "cpu")
    assert task.context == 140
    assert stated_context(AutoConfig.from_pretrained(task.initial)) == 140
    assert stated_context(AutoConfig.from_pretrained(made)) is None
    assert Path(task.initial, "model.safetensors").resolve().parent == made


def test_a_lowered_context_leaves_longer_examples_out_and_the_model_as_it_is(
    tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    make_store(tmp_path / "store")
    task = prepare_task(config_of(tmp_path, {"architecture": ARCHITECTURE, "context": 30}), "cpu")
    assert task.context == 30
    assert stated_context(AutoConfig.from_pretrained(task.initial)) == 256
    free = replace(task, context=256)
    lengths = [gather_materials(each).plan.selection.sequence_length for each in (task, free)]
    assert lengths[0].max() <= 30 < lengths[1].max()
    assert lengths[0].tolist() == [length for length in lengths[1].tolist() if length <= 30]
    with pytest.raises(ModelError, match=r"model\.context 300: the model takes 256"):
        prepare_task(config_of(tmp_path, {"architecture": ARCHITECTURE, "context": 300}), "cpu")


def test_padding_of_a_row_of_one_sequence_ends_at_the_models_last_position(
    tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    make_store(tmp_path / "store")
    # The store's longest sequence has 37 tokens, and rows are multiples of 8: 40.
    gpt2 = {"model_type": "gpt2", "n_positions": 37, "n_embd": 16, "n_layer": 1, "n_head": 2}
    model = {"architecture": gpt2, "layout": "single"}
    task = begin_run(prepare_task(config_of(tmp_path, model), "cpu"))
    assert gather_materials(task).plan.selection.sequence_length.max() == 37
    run_task(task, PlainEngine(build_policy(task, None), task.config.optimizer))
