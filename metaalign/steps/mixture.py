"""Sources drawn by weight instead of by size. Knows the names of source files and no tokens.

Dimensions: N = selected examples, G = groups, P = patterns.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import NamedTuple

import numpy as np

from metaalign.errors import PlanError

_SHOWN = 8


class Mixture(NamedTuple):
    """Which source each example is of, and how often each source is drawn."""

    source: np.ndarray
    """(N,) int64 place of the example's pattern among the sorted patterns."""

    share: np.ndarray
    """(P,) float64 share of the visits, summing to 1."""


def mixture_of(files: np.ndarray, weights: Mapping[str, float]) -> Mixture:
    """Put every example under the one pattern that its source file matches.

    Args:
        files: (N,) names of source files.
        weights: By pattern, as in the setting batch.mixture. Their order means nothing.

    Raises:
        PlanError: names the pattern that matches no file, the files that match none or two, or
            says that no weight is positive.
    """
    found, inverse = np.unique(files.astype(str), return_inverse=True)
    patterns = sorted(weights)
    matches = np.array([[fnmatchcase(file, pattern) for pattern in patterns] for file in found])
    listed = ", ".join(map(repr, found[:_SHOWN].tolist())) + (", ..." * (len(found) > _SHOWN))
    problems = [
        f"{pattern!r} matches no source file"
        for pattern, used in zip(patterns, matches.sum(axis=0).tolist(), strict=True)
        if not used
    ]
    for file, count in zip(found.tolist(), matches.sum(axis=1).tolist(), strict=True):
        if count != 1:
            problems.append(f"{file!r} matches {'no pattern' if not count else 'several patterns'}")
    total = sum(weights.values())
    if total <= 0:
        problems.append("no weight is above 0")
    if problems:
        raise PlanError(
            f"batch.mixture: {'; '.join(problems[:_SHOWN])}; each source file with examples to "
            f"train on must match exactly one pattern, and there are {listed}"
        )
    share = np.array([weights[pattern] for pattern in patterns]) / total
    return Mixture(matches.argmax(axis=1)[inverse], share)


def mixed_visits(source: np.ndarray, share: np.ndarray, count: int, seed: int) -> np.ndarray:
    """(count,) groups in the order of the run, every source by its share.

    Each epoch of G visits gives a source its share of them, rounded up or down by chance and so
    without bias; their order is drawn. A source goes through permutations of its own groups, one
    after the other, across epochs.

    Args:
        source: (G,) of each group.
    """
    size = len(source)
    epochs = [
        _epoch(share, size, np.random.default_rng([seed, n])) for n in range(-(-count // size))
    ]
    drawn = np.concatenate(epochs)[:count]
    visits = np.empty(count, dtype=np.int64)
    for number in np.unique(drawn).tolist():
        places = np.flatnonzero(drawn == number)
        own = np.flatnonzero(source == number)
        rounds = [
            np.random.default_rng([seed, again, number]).permutation(own)
            for again in range(-(-len(places) // len(own)))
        ]
        visits[places] = np.concatenate(rounds)[: len(places)]
    return visits


def _epoch(share: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """(size,) the source of each visit: systematic sampling, then shuffled."""
    ends = np.cumsum(share)
    ends /= ends[-1]  # so that no rounding error gives a visit to a source of weight 0
    edges = np.minimum(np.floor(np.append(0, ends) * size + rng.random()), size).astype(np.int64)
    return rng.permutation(np.repeat(np.arange(len(share)), np.diff(edges)))
