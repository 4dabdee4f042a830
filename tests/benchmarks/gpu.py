"""One CUDA GPU without Ray: is FlexAttention exact, and how much of the device do steps use?

    python -m tests.benchmarks.gpu [--output FILE] [--steps 8]

- Exactness: log-probs and gradients of the FlexAttention path beside SDPA's, in float32, and in
  bfloat16 beside what SDPA itself loses there, for several shapes and a model with a window.
- Optimizer: bytes a second of DeepSpeed's FusedAdam and of torch's fused AdamW over the weights of
  a Llama of 1.2 billion, as a share of the device's own copies.
- Training: SFT and DPO steps of that Llama from random weights in bfloat16, at budgets of 4,096 and
  16,384, without activation checkpointing where memory allows, and TRL beside them, with Liger's
  kernels and without. Tokens a second; operations that the model needs (what checkpointing computes
  again is not among them) as a share of what a large product reaches here, and of the datasheet.

What is not installed is named. `--output FILE` writes the report to tests/benchmarks/results/FILE.
On a machine without a GPU it says so.
"""

import argparse
import datetime
import importlib.metadata
import json
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoConfig, AutoModelForCausalLM

from tests.benchmarks.gpu_arithmetic import datasheet_peak, share_of_peak
from tests.benchmarks.gpu_measures import (
    ARCHITECTURES,
    SHAPES,
    copy_peak,
    kernel_errors,
    matmul_peak,
    optimizer_bandwidth,
)
from tests.benchmarks.gpu_training import TrainingSpec, measured
from tests.benchmarks.report import bar, print_report
from tests.benchmarks.workloads import HH_LIKE, write_model, write_store

BILLION: dict[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 16_384,
    "tie_word_embeddings": True,
}
"""The shape of Llama-3.2-1B."""
VOCABULARY = 128_256
BUDGETS = (4096, 16_384)
GLOBAL_BATCH_SIZE = 128
FLOAT32_BAR = 1e-4
"""Relative error of log-probs and gradients; a mask that is not obeyed costs far more."""
BFLOAT16_BAR = 1.5
"""Errors of FlexAttention in bfloat16, by SDPA's own."""
PACKAGES = ("torch", "transformers", "deepspeed", "trl", "liger-kernel", "flash-attn")
RESULTS = Path(__file__).parent / "results"
CONSOLE = Console(stderr=True)


def versions() -> dict[str, str | None]:
    """Of what matters here; None where it is not installed."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def exactness(device: torch.device) -> tuple[dict[str, Any], dict[str, Any]]:
    """Errors by architecture and shape, and the bars on the largest of them."""
    errors = {
        f"{name}, {rows} x {length}": kernel_errors(
            architecture, rows=rows, length=length, kernel="flex_attention", device=device
        )
        for name, architecture in ARCHITECTURES.items()
        for rows, length in SHAPES
    }
    float32 = max(max(each["float32"]) for each in errors.values())
    by_sdpa = max(
        own / other
        for each in errors.values()
        for own, other in zip(each["bfloat16"], each["sdpa_bfloat16"], strict=True)
    )
    return errors, {
        "flex_float32": bar(float32, FLOAT32_BAR, at_least=False),
        "flex_bfloat16_by_sdpa": bar(by_sdpa, BFLOAT16_BAR, at_least=False),
    }


def optimizers(device: torch.device, copied: float) -> list[dict[str, Any]]:
    """Both fused AdamWs over the large model's shapes; FusedAdam is compiled at its first use."""
    with torch.device("meta"):
        config = AutoConfig.for_model("llama", vocab_size=VOCABULARY, **BILLION)
        model = AutoModelForCausalLM.from_config(config)
    shapes = [parameter.shape for parameter in model.parameters()]
    found = []
    for name in optimizer_names():
        measure = optimizer_bandwidth(name, shapes, device)
        found.append({**measure, "share_of_copy": measure["bytes_per_second"] / copied})
        torch.cuda.empty_cache()
    return found


def optimizer_names() -> list[str]:
    """As in the setting `optimizer.name`; `auto`, DeepSpeed's FusedAdam, wants CUDA's compiler."""
    return ["auto", "adamw"] if shutil.which("nvcc") else ["adamw"]


def training(storage: Path, steps: int, installed: dict[str, str | None]) -> dict[str, Any]:
    """Of each job, budget and side."""
    ways: dict[str, tuple[str, dict[str, Any]]] = {"ours": ("ours", {})}
    if installed["trl"]:
        ways["trl"] = ("trl", {})
    if installed["trl"] and installed["liger-kernel"]:
        ways["trl with liger"] = ("trl", {"use_liger_kernel": True})
    found: dict[str, Any] = {}
    for job in ("sft", "dpo"):
        for budget in BUDGETS:
            for way, (side, options) in ways.items():
                spec = TrainingSpec(
                    side=side,
                    job=job,
                    storage=str(storage),
                    device_type="cuda",
                    budget=budget,
                    steps=steps,
                    global_batch_size=GLOBAL_BATCH_SIZE,
                    optimizer=optimizer_names()[0],
                    options=options,
                )
                name = f"{job}, {budget}, {way}"
                found[name] = fitting(spec)
                CONSOLE.print(f"{name}: {found[name]}")
    return found


def fitting(spec: TrainingSpec) -> dict[str, Any] | None:
    """With activation checkpointing where memory is too small without; None where with, too."""
    found = measured(spec)
    if found is None:
        found = measured(replace(spec, activation_checkpointing=True))
    return found


def with_shares(training: dict[str, Any], matmul: float, datasheet: float | None) -> dict[str, Any]:
    """The figures with model FLOPs utilisation, by both peaks."""
    shown = {}
    for name, figures in training.items():
        if figures is not None:
            flops = figures["flops_per_second"]
            shares: dict[str, float | None] = {"mfu_by_matmul": share_of_peak(flops, 1, matmul)}
            if datasheet is not None:
                shares["mfu_by_datasheet"] = share_of_peak(flops, 1, datasheet)
            figures = {**figures, **shares}
        shown[name] = figures
    return shown


def measure_all(device: torch.device, steps: int) -> tuple[dict[str, Any], ...]:
    """Settings, figures and bars."""
    installed, name = versions(), torch.cuda.get_device_name(device)
    errors, bars = exactness(device)
    CONSOLE.print(errors)
    matmul, copied, datasheet = matmul_peak(device), copy_peak(device), datasheet_peak(name)
    adam = optimizers(device, copied)
    CONSOLE.print(adam)
    torch.cuda.empty_cache()
    with tempfile.TemporaryDirectory(prefix="metaalign-bench-") as folder:
        storage = Path(folder)
        groups = GLOBAL_BATCH_SIZE * (steps + 4)
        store = write_store(storage / "store", HH_LIKE, groups=groups, vocabulary=VOCABULARY)
        base = write_model(storage / "base", vocabulary=VOCABULARY, architecture=BILLION)
        store.template.save(base)
        trained = with_shares(training(storage, steps, installed), matmul, datasheet)
    missing = [package for package, version in installed.items() if version is None]
    missing += [] if shutil.which("nvcc") else ["nvcc, so that FusedAdam cannot be built"]
    settings = {
        "device": name,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": installed,
        "missing": missing,
        "model": {**BILLION, "vocab_size": VOCABULARY},
        "global_batch_size": GLOBAL_BATCH_SIZE,
        "steps": steps,
    }
    figures = {
        "matmul_flops_per_second": matmul,
        "datasheet_flops_per_second": datasheet,
        "copy_bytes_per_second": copied,
        "relative_errors": errors,
        "optimizers": adam,
        "training": trained,
    }
    return settings, figures, bars


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", metavar="FILE", help="under tests/benchmarks/results/")
    parser.add_argument("--steps", type=int, default=8, help="timed, of each training")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("This machine has no CUDA device: nothing is measured.")
        sys.exit(0)
    settings, figures, bars = measure_all(torch.device("cuda", 0), given.steps)
    if given.output:
        report = {"settings": settings, "figures": figures, "bars": bars}
        RESULTS.mkdir(exist_ok=True)
        text = json.dumps(report, indent=2) + "\n"
        (RESULTS / given.output).write_text(text, encoding="utf-8")
    print_report(settings, figures, bars)


if __name__ == "__main__":
    main()
