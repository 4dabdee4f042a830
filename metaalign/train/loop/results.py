"""What a run says of itself: the order of held-out pairs, and result.json.

    {"job": "dpo", "steps": 400, "seconds": 97.1, "tokens_per_second": 11402.0,
     "optimizer": "DeepSpeedCPUAdam", "loss": 0.21, "ended": "took every step",
     "best": {"metric": "loss", "value": 0.24, "step": 360, "measured_since": 1},
     "held_out": {"before": {"loss": 0.693}, "after": {"loss": 0.25}},
     "pair_order": {"accuracy": 0.93, "low": 0.91, "high": 0.95, "count": 512}, ...}

Knows no engine and no Ray.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from metaalign.train.losses.pairs import Gaps

RESULT_FILE = "result.json"
CONFIDENCE = 0.95


def pair_order(gaps: Gaps, *, seed: int = 0) -> dict[str, float]:
    """Share of the pairs whose better response has the larger reward; a tie counts half.

    Args:
        gaps: Every pair of the held-out examples, by what the loss calls its reward: the gain over
            the reference, or the average log-prob where the loss knows none.

    Returns:
        accuracy, and the bounds of its 95% bootstrap interval over examples, low and high; count
        of examples. An example's pairs together count once.
    """
    # Imported here: it takes half a second, which no worker but the first needs.
    from scipy.stats import bootstrap

    right = (np.sign(gaps.reward) + 1) / 2 * gaps.share
    by_example = np.bincount(gaps.example, weights=right)
    accuracy = float(by_example.mean())
    low = high = accuracy
    if by_example.min() < by_example.max():
        rng = np.random.default_rng(seed)
        interval = bootstrap(
            (by_example,),
            np.mean,
            confidence_level=CONFIDENCE,
            method="percentile",
            rng=rng,
            batch=100,  # all resamples at once would take 160 kB an example
        ).confidence_interval
        low, high = float(interval.low), float(interval.high)
    return {"accuracy": accuracy, "low": low, "high": high, "count": len(by_example)}


def write_result(folder: str | Path, result: dict[str, Any]) -> None:
    """Put result.json into the run's folder, whole or not at all."""
    write_json(Path(folder) / RESULT_FILE, result)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a file, whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


def read_result(folder: str | Path) -> dict[str, Any] | None:
    """The result of a finished run; None where it has not finished."""
    path = Path(folder) / RESULT_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
