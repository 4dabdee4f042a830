"""SFT beside TRL: samples a second.

    python -m tests.benchmarks.sft_vs_trl [--quick]

Workloads as in `dpo_vs_trl`, each example with its better response. TRL's best is the fastest of
padded batches and of padding-free ones, all without activation checkpointing. Padding-free batches
are one row whose samples start at position 0 anew, and carry no attention mask: where transformers
meets that with SDPA it keeps the samples apart by a block-diagonal mask. A way that does not shows
another loss at step 0, and is left out.

TRL's `packing=True` (bfd) keeps samples apart in the same way, through the same padding-free
collator. It is no candidate: it fits samples together by length from the whole data set, so its
steps cannot hold the examples of ours. What it computes is a padding-free row, and a step's 16
samples in one of them are among the ways.
"""

import tempfile
from pathlib import Path

from tests.benchmarks.matches import Match, effort_asked_for, run_matches
from tests.benchmarks.report import bar, print_report

KEPT = {"gradient_checkpointing": False}
WAYS = (
    *(KEPT | {"batch": number} for number in (1, 2, 4, 8)),
    *(KEPT | {"batch": number, "padding_free": True} for number in (4, 8, 16)),
)

MATCHES = {
    "a_vs_best": Match("sft", "a", 4096, WAYS),
    "a_vs_best_32k": Match("sft", "a", 32768, WAYS),
    "b_vs_best": Match("sft", "b", 4096, WAYS),
}
BARS = {"a_vs_best": 2.0, "b_vs_best": 3.0}
"""The larger vocabulary is a figure without one."""


def main() -> None:
    effort = effort_asked_for(__doc__)
    with tempfile.TemporaryDirectory(prefix="metaalign-bench-") as folder:
        figures, settings = run_matches(MATCHES, Path(folder), effort)
    bars = {name: bar(figures[name]["ratio"], value, at_least=True) for name, value in BARS.items()}
    print_report(settings, figures, bars)


if __name__ == "__main__":
    main()
