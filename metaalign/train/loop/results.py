"""The accuracy on held-out pairs, and result.json.

    {"job": "dpo", "steps": 400, "seconds": 97.1, "tokens_per_second": 11402.0,
     "optimizer": "DeepSpeedCPUAdam", "loss": 0.21, "ended": "took every step",
     "best": {"metric": "loss", "value": 0.24, "step": 360, "measured_since": 1},
     "held_out": {"before": {"loss": 0.693}, "after": {"loss": 0.25}},
     "pair_order": {"accuracy": 0.93, "low": 0.91, "high": 0.95, "count": 512}, ...}

Imports neither an engine nor Ray.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from metaalign.folders import write_whole
from metaalign.train.losses.pairs import Gaps

RESULT_FILE = "result.json"
CONFIDENCE = 0.95


def pair_order(gaps: Gaps, *, seed: int = 0) -> dict[str, float]:
    """Share of the pairs whose better response has the larger reward; a tie counts as half.

    Args:
        gaps: Every pair of the held-out examples. The reward is the log-ratio to the reference, or
            the average log-prob if the loss uses no reference.

    Returns:
        accuracy; low and high, the bounds of its 95% bootstrap interval over examples; count, the
        number of examples. Each example has weight 1, shared by its pairs.
    """
    right = (np.sign(gaps.reward) + 1) / 2 * gaps.share
    by_example = np.bincount(gaps.example, weights=right)
    low, high = bootstrap_interval(by_example, seed=seed)
    accuracy = float(by_example.mean())
    return {"accuracy": accuracy, "low": low, "high": high, "count": len(by_example)}


def bootstrap_interval(
    values: np.ndarray, weights: np.ndarray | None = None, *, seed: int = 0
) -> tuple[float, float]:
    """Bounds of the 95% percentile bootstrap interval of a mean over examples.

    Args:
        values: (N,) one value per example.
        weights: (N,) positive. If given, the interval is that of sum(values) / sum(weights).
    """
    # Imported here: the import takes half a second, and only the first worker needs it.
    from scipy.stats import bootstrap

    data = (values,) if weights is None else (values, weights)
    ratios = values / (1.0 if weights is None else weights)
    if ratios.min() == ratios.max():
        return float(ratios[0]), float(ratios[0])
    interval = bootstrap(
        data,
        np.mean if weights is None else _ratio_of_sums,
        paired=weights is not None,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
        batch=100,  # all resamples at once would take 160 kB per example
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _ratio_of_sums(values: np.ndarray, weights: np.ndarray, axis: int = -1) -> np.ndarray:
    return values.sum(axis) / weights.sum(axis)


def write_result(folder: str | Path, result: dict[str, Any]) -> None:
    """Write result.json into the run's folder, whole or not at all."""
    write_whole(Path(folder) / RESULT_FILE, json.dumps(result, indent=2) + "\n")


def read_result(folder: str | Path) -> dict[str, Any] | None:
    """The result of a finished run; None if the run has not finished."""
    path = Path(folder) / RESULT_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
