"""Two contenders take steps in turn, in one run; what is compared are medians of ratios."""

import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.benchmarks.contenders import Spec

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Curve:
    """What a side computed at each of its steps."""

    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)


class Contender:
    """A process of `contenders`, which ends with the block that it is entered for."""

    def __init__(self, spec: Spec, log: Path) -> None:
        self.spec = spec
        self.curve = Curve()
        self.resident_mb = self.peak_mb = 0.0
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

    def __enter__(self) -> "Contender":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def ready(self) -> None:
        """Wait until the first step could begin."""
        self.resident_mb = self._answer()["resident_mb"]

    def go(self, steps: int) -> float:
        """Take some steps; the seconds that they took."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"go {steps}\n")
        self._process.stdin.flush()
        answer = self._answer()
        self.curve.losses.extend(answer["losses"])
        self.curve.grad_norms.extend(answer["grad_norms"])
        self.peak_mb = answer["peak_mb"]
        return answer["seconds"]

    def stop(self) -> None:
        """End the process; again does no harm."""
        self._process.kill()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a contender ended:\n{self._log.read_text()[-4000:]}")
        return json.loads(line)


@dataclass(frozen=True)
class Duel:
    """What two sides did, ours first."""

    seconds: tuple[list[float], list[float]]
    """Of each block after the warm-up."""
    curves: tuple[Curve, Curve]
    peak_mb: tuple[float, float]
    """Above the level just before step 1."""

    @property
    def ratios(self) -> list[float]:
        """Seconds of the other side by ours, block by block."""
        return [other / own for own, other in zip(*self.seconds, strict=True)]

    def figures(self, examples: int) -> dict[str, Any]:
        """Rates are of the median block; `examples` are those of a block."""
        rates = [examples / statistics.median(part) for part in self.seconds]
        losses, norms = differences(*self.curves)
        return {
            "ratio": round(statistics.median(self.ratios), 3),
            "ratio_range": [round(min(self.ratios), 3), round(max(self.ratios), 3)],
            "examples_per_second": [round(rate, 2) for rate in rates],
            "peak_mb": [round(peak) for peak in self.peak_mb],
            "first_loss": [curve.losses[0] for curve in self.curves],
            "last_loss": [curve.losses[-1] for curve in self.curves],
            "largest_loss_difference": max(losses),
            "largest_grad_norm_difference": max(norms),
        }


def duel(ours: Contender, other: Contender, *, blocks: int, steps_per_block: int) -> Duel:
    """Let both take blocks in turn, the first one as a warm-up. Both stand at the same step."""
    sides = (ours, other)
    seconds: tuple[list[float], list[float]] = ([], [])
    for block in range(blocks + 1):
        for number in (0, 1) if block % 2 else (1, 0):
            taken = sides[number].go(steps_per_block)
            if block:
                seconds[number].append(taken)
    peaks = [side.peak_mb - side.resident_mb for side in sides]
    return Duel(seconds, (ours.curve, other.curve), (peaks[0], peaks[1]))


def differences(ours: Curve, other: Curve) -> tuple[list[float], list[float]]:
    """At each step, of losses (in nats, as a share of those above 1) and of gradient norms (as a
    share of the other's)."""
    losses = [abs(a - b) / max(1.0, abs(b)) for a, b in zip(ours.losses, other.losses, strict=True)]
    norms = [abs(a - b) / abs(b) for a, b in zip(ours.grad_norms, other.grad_norms, strict=True)]
    return losses, norms


def check_same(ours: Curve, other: Curve, *, loss: float, grad_norm: float) -> None:
    """The two sides computed the same losses and gradient norms, from step 0 to the last.

    Args:
        loss: Tolerance of `differences`, as is the next.

    Raises:
        AssertionError: they did not.
    """
    for step, (loss_apart, norm_apart) in enumerate(zip(*differences(ours, other), strict=True)):
        if not (loss_apart <= loss and norm_apart <= grad_norm):
            losses = ours.losses[step], other.losses[step]
            norms = ours.grad_norms[step], other.grad_norms[step]
            raise AssertionError(f"step {step}: losses {losses}, gradient norms {norms}")
