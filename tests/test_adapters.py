"""LoRA: what is trained, that it starts as nothing, that ZeRO-3 trains it, and what is exported."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from metaalign.config import DPOConfig, ExportConfig, SFTConfig, load_config
from metaalign.config.sections import LoraConfig
from metaalign.errors import ConfigError, ModelError
from metaalign.folders import weights_fingerprint
from metaalign.store.token_store import TokenStore
from metaalign.train.engines.starting import build_policy
from metaalign.train.export import run_export
from metaalign.train.launch.driver import begin_run
from metaalign.train.model.adapters import add_adapters
from metaalign.train.model.vocabulary import has_new_tokens
from metaalign.train.task import Task
from tests.plain_engine import PlainEngine
from tests.tiny_model import save_tiny_model
from tests.tiny_task import ARCHITECTURE, settings_of, tiny_task
from tests.worker_pool import run_workers
from tests.worker_scenarios import curve, run_task

LORA = {"rank": 2, "alpha": 8}


def adapted(
    storage: Path, make_store: Callable[..., TokenStore], job: str = "sft", *, vocabulary: bool
) -> Task:
    """A task that adapts a pretrained model; whether its embeddings are trained as well."""
    task = tiny_task(storage, make_store, job)
    base = storage / "base"
    if not base.is_dir():
        AutoModelForCausalLM.from_pretrained(task.initial).save_pretrained(base)
        TokenStore.open(storage / "store").template.save(base)
    model = {"model": {"path": "base", "lora": LORA}}
    config = {"sft": SFTConfig, "dpo": DPOConfig}[job].model_validate(
        settings_of(storage, **model, optimizer={"learning_rate": 1e-2, "weight_decay": 0.1})
    )
    return replace(
        task,
        config=config,
        initial=str(base),
        weights=weights_fingerprint(base),
        train_vocabulary=vocabulary,
    )


def plain(task: Task) -> PlainEngine:
    return PlainEngine(build_policy(task, None), task.config.optimizer)


@pytest.mark.parametrize("vocabulary", [False, True])
def test_adapters_alone_are_trained_or_the_vocabulary_beside_them(
    vocabulary: bool, tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    names = set(plain(adapted(tmp_path, make_store, vocabulary=vocabulary)).shapes())
    whole = {name for name in names if "lora_" not in name}
    expected = {"model.model.embed_tokens.weight", "model.lm_head.weight"}
    assert whole == (expected if vocabulary else set())
    # Seven projections in each of two layers, two matrices each.
    assert len(names - whole) == 28


def test_adapters_start_as_an_update_of_zero_and_dpo_at_log_two(
    tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    task = adapted(tmp_path, make_store, "dpo", vocabulary=False)
    policy = build_policy(task, None).model
    base = AutoModelForCausalLM.from_pretrained(task.initial)
    tokens = torch.arange(5, 45)[None]
    with torch.no_grad():
        assert torch.equal(policy(tokens).logits, base(tokens).logits)
    result = run_task(task, plain(task))["result"]
    assert result["held_out"]["before"]["loss"] == pytest.approx(0.6931472, abs=1e-6)
    assert result["held_out"]["after"]["loss"] < result["held_out"]["before"]["loss"] - 1e-3


@pytest.mark.parametrize("vocabulary", [False, True])
def test_two_workers_under_zero3_train_adapters_as_one_process_does(
    vocabulary: bool, tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    task = adapted(tmp_path, make_store, vocabulary=vocabulary)
    first, second = run_workers("steps", [task], tmp_path)
    alone = curve(task, plain(task))
    assert first == second
    torch.testing.assert_close(torch.tensor(first[0]), torch.tensor(alone), atol=1e-5, rtol=1e-5)
    assert alone[-1][0] < alone[0][0] - 0.05


@pytest.mark.parametrize("vocabulary", [False, True])
def test_the_exported_model_is_the_merged_policy(
    vocabulary: bool, tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    task = adapted(tmp_path, make_store, vocabulary=vocabulary)
    begin_run(task)
    engine = plain(task)
    run_task(task, engine)
    folder = run_export(ExportConfig(storage=str(tmp_path), run="sft", output="merged"))
    exported = AutoModelForCausalLM.from_pretrained(folder)
    start = AutoModelForCausalLM.from_pretrained(task.initial)
    assert set(exported.state_dict()) == set(start.state_dict())
    tokens = torch.arange(5, 45)[None]
    with torch.no_grad():
        live = engine.policy.model(tokens).logits
        torch.testing.assert_close(exported(tokens).logits, live, atol=1e-5, rtol=1e-5)
        assert (exported(tokens).logits - start(tokens).logits).abs().max() > 1e-2
    same = torch.equal(exported.lm_head.weight, start.lm_head.weight)
    assert same is not vocabulary


def test_adapters_of_a_bfloat16_run_are_exported_into_bfloat16_weights(
    tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    task = replace(adapted(tmp_path, make_store, vocabulary=False), dtype="bfloat16")
    begin_run(task)
    run_task(task, plain(task))
    folder = run_export(ExportConfig(storage=str(tmp_path), run="sft", output="merged"))
    exported = AutoModelForCausalLM.from_pretrained(folder)
    start = AutoModelForCausalLM.from_pretrained(task.initial, dtype=torch.bfloat16)
    assert exported.dtype == torch.bfloat16
    before = start.state_dict()
    changed = {
        name
        for name, value in exported.state_dict().items()
        if not torch.equal(value, before[name])
    }
    # The seven projections of both layers, none of which rounding took back to where it was.
    assert len(changed) == 14
    assert all("proj" in name for name in changed)


def test_adapters_are_not_merged_into_another_model_than_they_were_trained_on(
    tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    task = adapted(tmp_path, make_store, vocabulary=False)
    begin_run(task)
    run_task(task, plain(task))
    other = tiny_task(tmp_path, make_store, model={"architecture": ARCHITECTURE, "seed": 1})
    AutoModelForCausalLM.from_pretrained(other.initial).save_pretrained(task.initial)
    with pytest.raises(ModelError, match=f"started from.*{task.weights[:12]}.*something replaced"):
        run_export(ExportConfig(storage=str(tmp_path), run="sft", output="merged"))
    assert not (tmp_path / "merged").exists()


def test_new_control_tokens_are_noticed(
    tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    task = adapted(tmp_path, make_store, vocabulary=False)
    template = TokenStore.open(tmp_path / "store").template
    assert not has_new_tokens(task.initial, template)
    other = save_tiny_model(tmp_path / "other", template=template)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (other / name).read_text(encoding="utf-8")
        (other / name).write_text(text.replace("<|user_info|>", "<|other|>"), encoding="utf-8")
    assert has_new_tokens(str(other), template)


def test_a_projection_that_the_model_has_not_is_named(
    tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_task(tmp_path, make_store).initial)
    config = LoraConfig(target_modules=("query_key_value",))
    with pytest.raises(ModelError, match=r"model.lora.target_modules: .*query_key_value"):
        add_adapters(model, config, train_vocabulary=False, seed=0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.load_in_4bit=true", r"model.load_in_4bit: metaalign has no quantized weights"),
        ("workers.tensor_parallel_size=2", "workers.tensor_parallel_size: metaalign has no tensor"),
        ("batch.sequence_parallel_size=2", "metaalign has no sequence parallelism"),
        ("model.lora.dropout=0.1", r"model.lora.dropout: unknown setting"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    override: str, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "sft.yaml"
    file.write_text("storage: /tmp/none\nmodel: {path: base, lora: {}}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_config(SFTConfig, file, [override])


def test_adapters_need_a_pretrained_model(tmp_path: Path) -> None:
    settings: dict[str, Any] = settings_of(tmp_path)
    settings["model"]["lora"] = LORA
    with pytest.raises(ValueError, match="lora adapts a pretrained model"):
        SFTConfig.model_validate(settings)
