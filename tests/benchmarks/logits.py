"""Memory that the loss adds over the model's own, in chunks of targets and with full logits.

    python -m tests.benchmarks.logits

A vocabulary of 131,072 and 4,096 targets, float32. Both sides first take a backward pass over a
few targets, so that the head's own weight gradient is there and not counted.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from metaalign.steps.trees import Sequence, lay_out_rows
from metaalign.train.logprobs import Policy, TensorRows, targets_per_chunk, to_tensors
from tests.benchmarks.contenders import memory_mb
from tests.benchmarks.report import bar, print_report

VOCABULARY = 131_072
TARGETS = 4096
CHUNK_SIZE_MB = 64
BAR = 0.1


def added_mb(chunk_targets: int) -> float:
    """Peak memory of forward and backward over all targets, above the level before."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=TARGETS + 8,
    )  # fmt: skip
    model = LlamaForCausalLM._from_config(config, attn_implementation="sdpa")
    policy = Policy(model, attention="sdpa", layout="tree", chunk_targets=chunk_targets)
    policy(rows_of(8)).sum().backward()
    rows = rows_of(TARGETS)
    before = memory_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    policy(rows).sum().backward()
    return memory_mb("VmHWM") - before


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


def measured(chunk_targets: int) -> float:
    """`added_mb` in a process of its own: what one side leaves would hide what the other takes."""
    command = [sys.executable, "-m", "tests.benchmarks.logits", str(chunk_targets)]
    return float(json.loads(subprocess.check_output(command, text=True).splitlines()[-1]))


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(added_mb(int(sys.argv[1]))))
        return
    chunk = targets_per_chunk(CHUNK_SIZE_MB, VOCABULARY)
    chunked, full = measured(chunk), measured(TARGETS)
    print_report(
        {"vocabulary": VOCABULARY, "targets": TARGETS, "chunk_size_mb": CHUNK_SIZE_MB},
        {"chunked_mb": round(chunked), "full_mb": round(full), "targets_per_chunk": chunk},
        {"added_memory": bar(round(chunked / full, 4), BAR, at_least=False)},
    )


if __name__ == "__main__":
    main()
