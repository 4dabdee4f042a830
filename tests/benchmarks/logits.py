"""Memory that the loss adds over the model's own, in chunks of targets and with full logits.

    python -m tests.benchmarks.logits [--targets 4096]

A vocabulary of 131,072, float32, 4,096 targets and four times as many. Measured is the peak from
the end of the decoder's forward pass to the gradient of its output, above the level at its
beginning: the head, the loss and their backward pass. The head's own weight gradient is there
before, and not counted.

Chunks do not grow with the targets; what does is the (T, H) hidden states of the targets, their
gradients and the log-probs, a thousandth of the (T, V) logits. `growth` is the peak at 16,384
targets by that at 4,096, hidden states and all, so it claims more than that the logits' share is
constant. Full logits are measured at 4,096 alone: at 16,384 they would take 26 GB.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from metaalign.steps.trees import Sequence, lay_out_rows
from metaalign.train.model.policy import (
    Policy,
    TensorRows,
    decoder_of,
    targets_per_chunk,
    to_tensors,
)
from tests.benchmarks.contenders import memory_mb
from tests.benchmarks.report import bar, print_report

VOCABULARY = 131_072
HIDDEN_SIZE = 64
TARGETS = 4096
TIMES = 4
"""The larger number of targets by the smaller."""
CHUNK_SIZE_MB = 64
ADDED_BAR, GROWTH_BAR = 0.1, 1.2
EAGER_RELEASE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""glibc then gives freed tensors back at once: pages that it kept would hide new ones."""


def added_mb(targets: int, chunk_targets: int) -> float:
    """What the loss over some targets adds at its peak, above the level after the decoder."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN_SIZE, intermediate_size=128,
        num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=512,
    )  # fmt: skip
    model = LlamaForCausalLM._from_config(config, attn_implementation="sdpa")
    policy = Policy(model, attention="sdpa", layout="tree", chunk_targets=chunk_targets)
    policy(rows_of(8)).sum().backward()
    rows = rows_of(targets)
    level: list[float] = []

    def begin(_: Any, __: Any, output: Any) -> None:
        output.last_hidden_state.register_hook(end)
        level.append(memory_mb("VmRSS"))
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here

    def end(_: torch.Tensor) -> None:
        level.append(memory_mb("VmHWM"))

    decoder_of(model).register_forward_hook(begin)
    policy(rows).sum().backward()
    before, peak = level
    return peak - before


def rows_of(targets: int) -> TensorRows:
    """Sequences of 256 tokens at most, all but the first of each a target."""
    rng, sequences, left = np.random.default_rng(0), [], targets
    while left:
        size = min(left, 256)
        tokens = rng.integers(1, VOCABULARY, size + 1)
        sequences.append(Sequence(tokens, 1, len(sequences)))
        left -= size
    rows = lay_out_rows(sequences, num_rows=len(sequences), num_targets=targets, length=264)
    return to_tensors(rows)


def measured(targets: int, chunk_targets: int) -> float:
    """`added_mb` in a process of its own: what one side leaves would hide what the other takes."""
    command = [sys.executable, "-m", "tests.benchmarks.logits", "--measure"]
    command += [str(targets), str(chunk_targets)]
    output = subprocess.check_output(command, text=True, env=os.environ | EAGER_RELEASE)
    return float(json.loads(output.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--targets", type=int, default=TARGETS, help="the smaller number of them")
    parser.add_argument("--measure", type=int, nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(added_mb(*given.measure)))
        return
    few, many = given.targets, TIMES * given.targets
    chunk = targets_per_chunk(CHUNK_SIZE_MB, VOCABULARY)
    chunked, chunked_many = measured(few, chunk), measured(many, chunk)
    full = measured(few, few)
    hidden_mb = 4 * HIDDEN_SIZE * few / 1e6
    print_report(
        {"vocabulary": VOCABULARY, "targets": [few, many], "chunk_size_mb": CHUNK_SIZE_MB},
        {
            "chunked_mb": [round(chunked), round(chunked_many)],
            "full_mb": round(full),
            "targets_per_chunk": chunk,
            "hidden_states_mb": [round(hidden_mb, 1), round(TIMES * hidden_mb, 1)],
        },
        {
            "added_memory": bar(round(chunked / full, 4), ADDED_BAR, at_least=False),
            "growth": bar(round(chunked_many / chunked, 3), GROWTH_BAR, at_least=False),
        },
    )


if __name__ == "__main__":
    main()
