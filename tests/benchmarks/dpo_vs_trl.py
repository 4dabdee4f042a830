"""DPO beside TRL: pairs a second, and peak memory above the level before step 1.

    python -m tests.benchmarks.dpo_vs_trl

Workloads: (a) like hh_rlhf: a prompt of about 210 tokens, responses of about 85. (b) like
MetaAlign: a meta-prompt of about 150 shared by four queries of about 60; whole groups share a step.
TRL's best: precomputed references, no activation checkpointing, and the batch of a forward pass
that was fastest for it. Both sides take one process, two threads, float32.
"""

import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.matches import Match, run_matches
from tests.benchmarks.report import bar, print_report

BEST = {"precompute_ref_log_probs": True, "gradient_checkpointing": False}
FORWARD_BATCHES = (2, 4)
"""Pairs of TRL's forward pass that were tried; smaller ones are faster on a CPU's caches."""

MATCHES = {
    "a_vs_default": Match("dpo", "a", 4096, ({},)),
    "a_vs_best_4k": Match("dpo", "a", 4096, tuple(BEST | {"batch": n} for n in FORWARD_BATCHES)),
    "a_vs_best_32k": Match("dpo", "a", 32768, tuple(BEST | {"batch": n} for n in FORWARD_BATCHES)),
    "b_vs_best": Match("dpo", "b", 4096, tuple(BEST | {"batch": n} for n in FORWARD_BATCHES)),
}
BARS = {"a_vs_default": 3.4, "a_vs_best_4k": 3.0, "a_vs_best_32k": 3.4, "b_vs_best": 5.0}
MEMORY_BAR = 0.5


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="metaalign-bench-") as folder:
        figures, settings = run_matches(MATCHES, Path(folder))
    bars: dict[str, Any] = {
        name: bar(figures[name]["ratio"], value, at_least=True) for name, value in BARS.items()
    }
    ours, other = figures["a_vs_best_32k"]["peak_mb"]
    bars["memory"] = bar(round(ours / other, 3), MEMORY_BAR, at_least=False)
    print_report(settings, figures, bars)


if __name__ == "__main__":
    main()
