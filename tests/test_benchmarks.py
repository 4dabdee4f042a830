"""The benchmarks can be started, their arithmetic is right, and a bar holds where it should.

The slow ones run both sides of each comparison end to end, in the smallest form.
"""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPTNeoConfig, LlamaConfig, MptConfig

from tests.benchmarks import architectures, dpo_vs_trl, gpu, invariance, sft_vs_trl
from tests.benchmarks.contenders import Spec, plan_of
from tests.benchmarks.duel import Curve, Duel, check_same
from tests.benchmarks.gpu_arithmetic import (
    DecoderShape,
    adam_bandwidth,
    copy_bandwidth,
    datasheet_peak,
    seen_by,
    seen_in_sequences,
    share_of_peak,
)
from tests.benchmarks.gpu_measures import (
    SMALL_LLAMA,
    copy_peak,
    kernel_errors,
    matmul_peak,
    optimizer_bandwidth,
)
from tests.benchmarks.gpu_training import TrainingSpec, forward_batch, measured, work_of
from tests.benchmarks.matches import QUICK, Match, run_match
from tests.benchmarks.report import bar, print_report
from tests.benchmarks.timed_run import timing_of
from tests.benchmarks.workloads import HH_LIKE, SMALL, write_model, write_store

MODULES = sorted(path.stem for path in (Path(__file__).parent / "benchmarks").glob("[a-z]*.py"))
CPU = torch.device("cpu")
TINY = {
    **SMALL_LLAMA,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize("name", MODULES)
def test_every_benchmark_can_be_imported(name: str) -> None:
    module = importlib.import_module(f"tests.benchmarks.{name}")
    assert module.__doc__
    if f"python -m tests.benchmarks.{name}" in module.__doc__:
        assert callable(module.main)


def test_a_bar_holds_on_its_own_side_alone() -> None:
    assert bar(3.4, 3.4, at_least=True)["holds"]
    assert not bar(3.39, 3.4, at_least=True)["holds"]
    assert bar(0.5, 0.5, at_least=False)["holds"]
    assert not bar(0.51, 0.5, at_least=False)["holds"]
    assert not bar(float("nan"), 0.5, at_least=False)["holds"]


def test_the_report_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_report({"steps": 2}, {"loss": [1.0]}, {"ratio": bar(2.0, 1.0, at_least=True)})
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["bars"] == {"ratio": {"value": 2.0, "bar": 1.0, "holds": True}}


def test_sides_that_differ_in_a_loss_or_a_gradient_norm_are_found() -> None:
    own = Curve([0.7, 0.5], [4.0, 2.0])
    check_same(own, Curve([0.701, 0.5], [4.0, 2.02]), loss=2e-3, grad_norm=0.011)
    with pytest.raises(AssertionError, match="step 0: losses"):
        check_same(own, Curve([0.703, 0.5], [4.0, 2.0]), loss=2e-3, grad_norm=0.011)
    with pytest.raises(AssertionError, match="step 1: losses"):
        check_same(own, Curve([0.7, 0.5], [4.0, 2.1]), loss=2e-3, grad_norm=0.011)
    with pytest.raises(AssertionError, match="step 1: losses"):
        check_same(own, Curve([0.7, float("nan")], [4.0, 2.0]), loss=2e-3, grad_norm=0.011)


def test_the_ratio_is_the_median_over_blocks() -> None:
    curve = Curve([0.7], [1.0])
    # By block 6 / 2, 4 / 4 and 8 / 2.
    found = Duel(([2.0, 4.0, 2.0], [6.0, 4.0, 8.0]), (curve, curve), (10.0, 30.0))
    figures = found.figures(examples=12)
    assert figures["ratio"] == 3.0
    assert figures["ratio_range"] == [1.0, 4.0]
    assert figures["examples_per_second"] == [6.0, 2.0]


def test_hooks_of_the_last_step_count_as_overhead() -> None:
    timing = timing_of(ended=[10.0, 12.0, 15.0], waited=[5.0, 0.5, 0.25], returned=16.0, loss=1.0)
    # Two steps after the first, whose own waiting is start-up; 0.5 + 0.25 + 1 s were not theirs.
    assert timing == {"steps": 2, "steps_s": 5.0, "run_s": 6.0, "overhead_s": 1.75, "loss": 1.0}


def test_differences_of_norms_are_absolute_and_shares_of_the_norm() -> None:
    curves = {
        ("sft", "a"): np.array([[8.0, 4.0], [7.0, 0.5]]),
        ("sft", "b"): np.array([[8.0, 4.4], [7.3, 0.6]]),
    }
    # 0.3 of a loss; 0.4 / 4, and 0.1 of a norm below 1 as it is; 0.4.
    found = invariance.differences(curves, "sft", "a", ["a", "b"])
    np.testing.assert_allclose(found, [0.3, 0.1, 0.4])


def test_operations_of_a_step() -> None:
    shape = DecoderShape(
        hidden_size=4,
        intermediate_size=8,
        layers=2,
        heads=2,
        key_value_heads=1,
        head_size=3,
        vocabulary=10,
    )
    # Queries and output 4 x 6 each, keys and values 4 x 3 each, MLP 3 x 4 x 8: 72 + 96.
    assert shape.layer_weights == 168
    # Products: 2 layers x 168 x 5 tokens = 1680; 2 layers x 2 heads x 2 x 3 x 9 pairs = 216;
    # 4 x 10 x 3 targets = 120. Each is two operations, and a backward pass two forwards.
    assert shape.training_flops(tokens=5, seen=9, targets=3) == 6 * 2016
    # Trees of "a b c" and "a b d e", stored once and one by one.
    assert seen_by(np.array([0, 1, 2, 2, 3])) == 1 + 2 + 3 + 3 + 4
    assert seen_in_sequences(np.array([3, 4])) == 6 + 10


def test_the_shape_of_llama_3_2_1b_has_its_parameters() -> None:
    config = {**gpu.BILLION, "vocab_size": gpu.VOCABULARY}
    shape = DecoderShape.of(config)
    # 1,235,814,400 in all, of which 33 norms of 2,048; the head is the embedding.
    assert 16 * shape.layer_weights + 128_256 * 2048 + 33 * 2048 == 1_235_814_400


def test_shares_of_a_device() -> None:
    assert share_of_peak(50, seconds=2, peak=100) == 0.25
    assert copy_bandwidth(1000, seconds=4) == 500
    # Four float32 read and three written, of 100 parameters.
    assert adam_bandwidth(100, seconds=7) == 400
    assert datasheet_peak("NVIDIA H100 80GB HBM3") == 989e12
    assert datasheet_peak("NVIDIA H100 PCIe") == 756e12
    assert datasheet_peak("NVIDIA A100-SXM4-40GB") == 312e12
    assert datasheet_peak("GeForce 256") is None
    assert forward_batch(4096, tokens_of_an_example=300, most=128) == 8
    assert forward_batch(4096, tokens_of_an_example=300, most=4) == 4
    assert forward_batch(300, tokens_of_an_example=400, most=8) == 1


def test_work_counts_shared_prompts_once_in_rows_and_twice_in_sequences(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", HH_LIKE, groups=8, vocabulary=30_000)
    spec = Spec("ours", "dpo", str(tmp_path / "store"), "", steps=1, global_batch_size=3)
    plan = plan_of(spec)[1]
    work = work_of(store, plan, 0)
    prompts, responses = [], []
    for position in plan.step(0).tolist():
        row = int(plan.selection.example[position])
        prompts.append(len(store.prompt(row)))
        responses.append([len(store.response(row, number)) for number in (0, 1)])
    pairs = list(zip(prompts, responses, strict=True))
    assert work.examples == 3
    assert work.targets == sum(map(sum, responses))
    assert work.tokens == sum(prompts) + work.targets
    assert work.sequence_tokens == 2 * sum(prompts) + work.targets
    # The i-th token of a response sees its prompt and i tokens of its own.
    below = sum(p * n + n * (n + 1) // 2 for p, lengths in pairs for n in lengths)
    above = sum(p * (p + 1) // 2 for p in prompts)
    assert work.seen == above + below
    assert work.sequence_seen == 2 * above + below


@pytest.mark.parametrize("window", [None, 24])
def test_exactness_is_measured_against_an_independent_kernel(window: int | None) -> None:
    """On a CPU eager attention stands in for FlexAttention, which cannot train there."""
    architecture = TINY if window is None else {**TINY, "model_type": "mistral"}
    architecture = {**architecture, **({} if window is None else {"sliding_window": window})}
    errors = kernel_errors(architecture, rows=1, length=256, kernel="eager", device=CPU)
    assert max(errors["float32"]) < 1e-5
    for name in ("bfloat16", "sdpa_bfloat16"):
        assert all(1e-5 < error < 0.1 for error in errors[name]), (name, errors)


def test_an_architecture_that_is_fed_wrongly_is_found() -> None:
    found = architectures.checked(LlamaConfig(), "tree")
    assert found.dtype == "float64"
    assert not found.wrong
    # Both follow the place in a row: MPT by its biases, GPT-Neo by windows of 256 tokens.
    for config in (GPTNeoConfig(), MptConfig()):
        found = architectures.checked(config, "tree")
        assert found.wrong
        assert min(found.short, found.long) > 1e-2
        assert not architectures.checked(config, "single").wrong


def test_a_model_that_hangs_or_crashes_does_not_stop_the_others() -> None:
    hung = architectures.in_own_process("llama", timeout_s=0)
    assert hung.layout == "not measured"
    crashed = architectures.in_own_process("no model type", timeout_s=30)
    assert (crashed.layout, crashed.reason) == ("not measured", "its process ended with 1")


def test_measures_of_a_device_run_anywhere() -> None:
    assert matmul_peak(CPU, size=32) > 0
    assert copy_peak(CPU, size_bytes=1024) > 0
    found = optimizer_bandwidth("adamw", [torch.Size([8, 4]), torch.Size([8])], CPU)
    assert (found["optimizer"], found["parameters"]) == ("AdamW", 40)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device to measure")
def test_without_a_gpu_the_benchmark_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["gpu"])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 0
    assert "no CUDA device" in capsys.readouterr().out


@pytest.mark.slow
def test_ours_and_trl_take_the_same_steps(tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="TRL is a dependency of the benchmarks alone")
    for name, benchmark, numbers in (("dpo", dpo_vs_trl, (2,)), ("sft", sft_vs_trl, (3, 5))):
        match = benchmark.MATCHES["b_vs_best"]
        ways = tuple(match.ways[number] for number in numbers)
        match = Match(match.job, match.shape, match.vocabulary, ways)
        figures = run_match(match, tmp_path / name, QUICK)
        assert figures["ratio"] > 0
        # Each step has other examples; what counts is that a curve that stood still hides nothing.
        assert abs(figures["last_loss"][0] - figures["first_loss"][0]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("job", ["sft", "dpo"])
def test_both_sides_of_the_gpu_benchmark_train(tmp_path: Path, job: str) -> None:
    """On a CPU, where it measures nothing; a path that only a GPU would walk would be blind."""
    pytest.importorskip("trl", reason="TRL is a dependency of the benchmarks alone")
    store = write_store(tmp_path / "store", HH_LIKE, groups=32, vocabulary=1000)
    architecture = {**SMALL, "hidden_size": 64, "num_hidden_layers": 2}
    store.template.save(write_model(tmp_path / "base", vocabulary=1000, architecture=architecture))
    figures = {}
    for side in ("ours", "trl"):
        spec = TrainingSpec(
            side=side,
            job=job,
            storage=str(tmp_path),
            device_type="cpu",
            budget=2048,
            steps=1,
            global_batch_size=4,
            optimizer="adamw",
            activation_checkpointing=side == "ours",
        )
        found = measured(spec)
        assert found is not None
        figures[side] = found
    ours, trl = figures["ours"], figures["trl"]
    assert ours["first_loss"] == pytest.approx(trl["first_loss"], abs=1e-4)
    shared = ours["computed_tokens_per_second"] < ours["sequence_tokens_per_second"]
    assert shared == (job == "dpo")
    assert trl["computed_tokens_per_second"] == trl["sequence_tokens_per_second"]
