"""What one device does: its clock, its peaks, its optimizer steps, and how exact its attention is.

Everything takes a device, so that a test can walk through all of it on a CPU, whose numbers mean
nothing.
"""

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from metaalign.config.sections import OptimizerConfig
from metaalign.steps.trees import Sequence, lay_out_rows
from metaalign.train.engines.optimizers import build_optimizer
from metaalign.train.model.attention import BLOCK, Kernel
from metaalign.train.model.policy import Policy, TensorRows, to_tensors
from tests.benchmarks.gpu_arithmetic import adam_bandwidth, copy_bandwidth

WARM_UP, REPEATS = 5, 20

SMALL_LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 1000,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": SMALL_LLAMA,
    "llama, grouped keys": {**SMALL_LLAMA, "num_key_value_heads": 2},
    "mistral, window of 96": {**SMALL_LLAMA, "model_type": "mistral", "sliding_window": 96},
}
SHAPES = ((1, 1024), (2, 512), (1, 4096))
"""Rows and their length."""


def median_seconds(run: Callable[[], Any], device: torch.device, repeats: int = REPEATS) -> float:
    """Of one call, after a warm-up: by events on CUDA, by the clock elsewhere."""
    for _ in range(min(WARM_UP, repeats)):
        run()
    return statistics.median(_seconds(run, device) for _ in range(repeats))


def _seconds(run: Callable[[], Any], device: torch.device) -> float:
    if device.type != "cuda":
        began = time.perf_counter()
        run()
        return time.perf_counter() - began
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1000


def matmul_peak(device: torch.device, size: int = 8192) -> float:
    """bfloat16 operations a second of the product of two square matrices."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * size**3 / median_seconds(lambda: torch.mm(a, b, out=out), device)


def copy_peak(device: torch.device, size_bytes: int = 2**31) -> float:
    """Bytes a second of a copy from the device's memory to itself."""
    source = torch.zeros(size_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return copy_bandwidth(size_bytes, median_seconds(lambda: target.copy_(source), device))


def optimizer_bandwidth(
    name: Any, shapes: Iterable[torch.Size], device: torch.device
) -> dict[str, Any]:
    """Of one of our optimizers over float32 parameters of these shapes.

    Args:
        name: As in the setting `optimizer.name`.
    """
    parameters = [torch.nn.Parameter(torch.randn(shape, device=device)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 1e-3)
    groups = [{"params": parameters, "weight_decay": 0.0}]
    optimizer = build_optimizer(groups, OptimizerConfig(name=name), device.type)
    seconds = median_seconds(optimizer.step, device)
    numel = sum(parameter.numel() for parameter in parameters)
    return {
        "optimizer": type(optimizer).__name__,
        "parameters": numel,
        "ms": 1000 * seconds,
        "bytes_per_second": adam_bandwidth(numel, seconds),
    }


def forest_rows(*, rows: int, length: int, vocabulary: int, seed: int = 0) -> TensorRows:
    """Full rows of pairs: prompts of 40 to 400 tokens with two responses each, all random."""
    rng = np.random.default_rng(seed)
    sequences: list[Sequence] = []
    for row in range(rows):
        left = length
        while left >= 3:
            prompt = rng.integers(1, vocabulary, min(int(rng.integers(40, 400)), left - 2))
            left -= len(prompt)
            for _ in range(2):
                size = min(int(rng.integers(10, 120)), left)
                tokens = np.append(prompt, rng.integers(1, vocabulary, size))
                sequences += [Sequence(tokens, len(prompt), row)] * (size > 0)
                left -= size
    targets = sum(len(each.tokens) - each.prompt_length for each in sequences)
    return to_tensors(lay_out_rows(sequences, num_rows=rows, num_targets=targets, length=length))


def logprobs_and_gradient(
    architecture: dict[str, Any],
    rows: TensorRows,
    *,
    kernel: Kernel,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """(T,) log-probs and all gradients of their weighted sum, flat; float64 on the CPU.

    The weights are the same for every kernel and precision, but for their rounding.
    """
    settings = dict(architecture)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation=kernel
    )
    model = model.to(device, dtype)
    policy = Policy(model, attention=kernel, layout="tree", chunk_targets=256).train()
    logprobs = policy(TensorRows(*(part.to(device) for part in rows)))
    weights = torch.linspace(-1, 1, len(logprobs), device=device)
    (logprobs * weights).sum().backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return logprobs.detach().double().cpu(), torch.cat(gradients).double().cpu()


def relative_error(found: Tensor, true: Tensor) -> float:
    """Norm of the difference by the norm of the truth."""
    return float((found - true).norm() / true.norm())


def kernel_errors(
    architecture: dict[str, Any],
    *,
    rows: int,
    length: int,
    kernel: Kernel,
    device: torch.device,
) -> dict[str, list[float]]:
    """Relative errors of log-probs and gradients, each a list of these two.

    `float32` is of the kernel against SDPA in float32. `bfloat16` and `sdpa_bfloat16` are of the
    two in bfloat16 against SDPA in float32, where SDPA's own error says what rounding costs.
    """
    assert length % BLOCK == 0
    fed = forest_rows(rows=rows, length=length, vocabulary=architecture["vocab_size"])

    def run(kernel: Kernel, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return logprobs_and_gradient(architecture, fed, kernel=kernel, dtype=dtype, device=device)

    true = run("sdpa", torch.float32)
    found = {
        "float32": run(kernel, torch.float32),
        "bfloat16": run(kernel, torch.bfloat16),
        "sdpa_bfloat16": run("sdpa", torch.bfloat16),
    }
    return {
        name: [relative_error(*pair) for pair in zip(values, true, strict=True)]
        for name, values in found.items()
    }
