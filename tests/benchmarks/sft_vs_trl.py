"""SFT beside TRL: samples a second.

    python -m tests.benchmarks.sft_vs_trl

Workloads as in `dpo_vs_trl`, each example with its better response. TRL's best is the fastest of
padded batches without activation checkpointing and of its packing, which keeps samples apart by
their positions; where a way computes another loss at step 0 it does not count.
"""

import tempfile
from pathlib import Path

from tests.benchmarks.matches import Match, run_matches
from tests.benchmarks.report import bar, print_report

PADDED = {"gradient_checkpointing": False}
WAYS = (
    *(PADDED | {"batch": number} for number in (4, 8)),
    *(PADDED | {"batch": number, "padding_free": True} for number in (2, 4)),
)

MATCHES = {
    "a_vs_best": Match("sft", "a", 4096, WAYS),
    "b_vs_best": Match("sft", "b", 4096, WAYS),
}
BARS = {"a_vs_best": 2.0, "b_vs_best": 3.0}


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="metaalign-bench-") as folder:
        figures, settings = run_matches(MATCHES, Path(folder))
    bars = {name: bar(figures[name]["ratio"], value, at_least=True) for name, value in BARS.items()}
    print_report(settings, figures, bars)


if __name__ == "__main__":
    main()
