"""Two contenders take steps in turn, in one run; what is compared are medians of ratios."""

import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks.contenders import Spec

ROOT = Path(__file__).resolve().parents[2]


class Contender:
    """A process of `contenders`."""

    def __init__(self, spec: Spec, log: Path) -> None:
        self._log = log
        environment = {
            "OMP_NUM_THREADS": str(spec.threads),
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": str(ROOT),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.contenders", spec.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            env=os.environ | environment,
            text=True,
        )
        self.resident_mb = 0.0

    def ready(self) -> None:
        """Wait until the first step could begin."""
        self.resident_mb = self._answer()["resident_mb"]

    def go(self, steps: int) -> dict[str, Any]:
        """Take some steps: seconds, losses, grad_norms, peak_mb."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"go {steps}\n")
        self._process.stdin.flush()
        return self._answer()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a contender ended:\n{self._log.read_text()[-4000:]}")
        return json.loads(line)


@dataclass
class Duel:
    """What two sides did, block by block."""

    ratios: list[float] = field(default_factory=list)
    """Seconds of the other side by ours, of each block after the warm-up."""
    seconds: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    losses: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    grad_norms: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    peak_mb: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """Above the level just before step 1."""

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    def figures(self, examples: int) -> dict[str, Any]:
        """Rates are of the median block; `examples` are those of a block."""
        rates = [examples / statistics.median(part) for part in self.seconds]
        return {
            "ratio": round(self.ratio, 3),
            "ratio_range": [round(min(self.ratios), 3), round(max(self.ratios), 3)],
            "examples_per_second": [round(rate, 2) for rate in rates],
            "peak_mb": [round(peak) for peak in self.peak_mb],
            "first_loss": [part[0] for part in self.losses],
            "largest_loss_difference": self.largest_difference(),
        }

    def largest_difference(self) -> float:
        """Between the two curves of losses."""
        return max(abs(a - b) for a, b in zip(*self.losses, strict=True))


def duel(ours: Spec, other: Spec, folder: Path, *, blocks: int, steps_per_block: int) -> Duel:
    """Warm both up by one block, then let them take blocks in turn.

    Raises:
        AssertionError: they do not compute the same losses.
    """
    sides = [Contender(spec, folder / f"{spec.side}.log") for spec in (ours, other)]
    found = Duel()
    try:
        for side in sides:
            side.ready()
        for block in range(blocks + 1):
            order = (0, 1) if block % 2 else (1, 0)
            taken = {number: sides[number].go(steps_per_block) for number in order}
            for number, answer in taken.items():
                found.losses[number].extend(answer["losses"])
                found.grad_norms[number].extend(answer["grad_norms"])
                found.peak_mb[number] = answer["peak_mb"] - sides[number].resident_mb
                if block:
                    found.seconds[number].append(answer["seconds"])
            if block:
                found.ratios.append(taken[1]["seconds"] / taken[0]["seconds"])
    finally:
        for side in sides:
            side.stop()
    return found


def check_same(found: Duel, *, tolerance: float) -> None:
    """The two sides computed the same losses, from step 0 to the last.

    Raises:
        AssertionError: they did not.
    """
    for step, (a, b) in enumerate(zip(*found.losses, strict=True)):
        if abs(a - b) > tolerance * max(1.0, abs(b)):
            raise AssertionError(f"step {step}: the losses are {a} and {b}")
