"""DPO beside TRL: pairs a second, and peak memory above the level before step 1.

    python -m tests.benchmarks.dpo_vs_trl [--quick]

Workloads: (a) like hh_rlhf: a prompt of about 210 tokens, responses of about 85. (b) like
MetaAlign: a meta-prompt of about 150 shared by four queries of about 60; whole groups share a step.

TRL's default: batches of 8 of its own, accumulated to the step's 16, the reference asked at every
step, activation checkpointing on. TRL's best: precomputed references, no activation checkpointing,
and the batch of a forward pass that is fastest for it, found before each match. TRL 1.16 has no
padding-free DPO: it takes the setting, warns and pads. Both sides take one process, two threads,
float32.
"""

import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.matches import Match, effort_asked_for, run_matches
from tests.benchmarks.report import bar, print_report

FORWARD_BATCHES = (1, 2, 4, 8)
"""Pairs of TRL's forward pass that it may choose from; a CPU's caches like the small ones."""

DEFAULT = ({},)
BEST = tuple(
    {"precompute_ref_log_probs": True, "gradient_checkpointing": False, "batch": number}
    for number in FORWARD_BATCHES
)

MATCHES = {
    "a_vs_default": Match("dpo", "a", 4096, DEFAULT),
    "a_vs_best_4k": Match("dpo", "a", 4096, BEST),
    "a_vs_best_32k": Match("dpo", "a", 32768, BEST),
    "b_vs_best": Match("dpo", "b", 4096, BEST),
}
BARS = {"a_vs_default": 3.4, "a_vs_best_4k": 3.0, "a_vs_best_32k": 3.4, "b_vs_best": 5.0}
MEMORY_BAR = 0.5


def main() -> None:
    effort = effort_asked_for(__doc__)
    with tempfile.TemporaryDirectory(prefix="metaalign-bench-") as folder:
        figures, settings = run_matches(MATCHES, Path(folder), effort)
    bars: dict[str, Any] = {
        name: bar(figures[name]["ratio"], value, at_least=True) for name, value in BARS.items()
    }
    ours, other = figures["a_vs_best_32k"]["peak_mb"]
    bars["memory"] = bar(round(ours / other, 3), MEMORY_BAR, at_least=False)
    print_report(settings, figures, bars)


if __name__ == "__main__":
    main()
