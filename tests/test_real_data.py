"""The shipped configs on public data, in small: a pretrained checkpoint, and a context of 2,048.

Held-out figures before and after a few steps; how many decide nothing but that they fall.
"""

from pathlib import Path
from typing import Any

import pytest

from metaalign.config import DPOConfig, ExportConfig, PrepareConfig, SFTConfig, load_config
from metaalign.data.prepare import prepare_store
from metaalign.examples import Turn
from metaalign.generate.embedded import EmbeddedEngine, Sampling
from metaalign.template import prompt_segments
from metaalign.train.export import run_export
from metaalign.train.launch.on_ray import run_dpo, run_sft

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]

CONFIGS = Path(__file__).resolve().parents[1] / "ray_jobs" / "configs"
IN_SMALL = ("length.epochs=null", "held_out.max_examples=48", "workers.num_workers=2")


def _load(model: Any, name: str, storage: Path, *overrides: str) -> Any:
    return load_config(model, CONFIGS / f"{name}.yaml", [f"storage={storage}", *overrides])


def _export(storage: Path, run: str, output: str) -> Path:
    config = ExportConfig(storage=str(storage), run=run, output=output)
    run_export(config)
    return storage / output


def _held_out_falls(result: dict[str, Any], margin: float) -> None:
    before, after = result["held_out"]["before"], result["held_out"]["after"]
    assert after["loss"] < before["loss"] - margin, (before, after)


def test_a_pretrained_checkpoint_learns_alpaca_and_then_personas(
    tmp_path: Path, shared_data: Path
) -> None:
    """By 0.5 nats a token in SFT, and by 0.02 nats a pair in DPO."""
    checkpoint = shared_data / "stories260k"
    sources = f"sources.0.path={shared_data}/demo_formats/alpaca_en_demo.json"
    tokenizer = f"tokenizer.path={checkpoint}"
    prepare_store(_load(PrepareConfig, "stories_alpaca", tmp_path, sources, tokenizer))
    model = f"model.path={checkpoint}"
    steps = ("length.max_steps=25", *IN_SMALL)
    sft = run_sft(_load(SFTConfig, "stories_sft", tmp_path, model, *steps))
    _held_out_falls(sft, margin=0.5)
    # What is longer than the 512 tokens of the model's context is counted, and is not bad.
    assert sft["examples"]["too_long_response"] > 100
    assert sum(sft["examples"].values()) == 2 * sft["examples"]["in"]
    folder = _export(tmp_path, "stories_sft", "stories_sft_model")

    sources = f"sources.0.path={shared_data}/personas/politically-*.jsonl"
    tokenizer = f"tokenizer.path={folder}"
    prepare_store(_load(PrepareConfig, "stories_personas", tmp_path, sources, tokenizer))
    dpo = run_dpo(_load(DPOConfig, "stories_dpo", tmp_path, *steps))
    _held_out_falls(dpo, margin=0.02)
    order = dpo["pair_order"]
    assert order["low"] < order["accuracy"] < order["high"]

    engine = EmbeddedEngine(_export(tmp_path, "stories_dpo", "model"))
    segments = prompt_segments(
        system_info="", user_info="I am liberal.", turns=[Turn("user", "What would you say?")]
    )
    prompt = engine.template.prompt_ids(segments)
    (answer,) = engine.generate([prompt], Sampling(max_tokens=8))
    assert 0 < len(answer.tokens) <= 8


def test_human_preferences_at_a_context_of_2048(tmp_path: Path, shared_data: Path) -> None:
    """By 1 nat a token in SFT, and by 0.001 nats a pair in DPO, where a whole epoch gives 0.01."""
    prepare_store(
        _load(
            PrepareConfig,
            "hh_prepare",
            tmp_path,
            f"sources.0.path={shared_data}/hh_rlhf/harmless-base_test.jsonl.gz",
            f"sources.1.path={shared_data}/demo_formats/dpo_en_demo.json",
        )
    )
    steps = ("length.max_steps=12", "batch.global_batch_size=16", *IN_SMALL)
    sft = run_sft(_load(SFTConfig, "hh_sft", tmp_path, *steps))
    _held_out_falls(sft, margin=1.0)
    _export(tmp_path, "hh_sft", "hh_sft_model")
    # A barely trained model overfits at the shipped rate's few steps; a lower one shows the way.
    steps = ("length.max_steps=12", "optimizer.learning_rate=5e-5", *IN_SMALL)
    dpo = run_dpo(_load(DPOConfig, "hh_dpo", tmp_path, *steps, "held_out.max_examples=200"))
    _held_out_falls(dpo, margin=0.001)
    assert dpo["held_out"]["before"]["loss"] == pytest.approx(0.6931472, abs=1e-6)
    order = dpo["pair_order"]
    assert order["count"] == 200
    assert 0 <= order["low"] <= order["accuracy"] <= order["high"] <= 1
