"""Draws sources by weight instead of by size. Reads names of source files and no tokens.

Dimensions: N = selected examples, G = groups, P = patterns.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import NamedTuple

import numpy as np

from metaalign.errors import PlanError

_SHOWN = 8


class Mixture(NamedTuple):
    """The source of each example, and how often each source is drawn."""

    source: np.ndarray
    """(N,) int64 place of the example's pattern among the sorted patterns."""

    share: np.ndarray
    """(P,) float64 share of the visits, summing to 1."""


def mixture_of(files: np.ndarray, weights: Mapping[str, float]) -> Mixture:
    """Put every example under the one pattern that its source file matches.

    Args:
        files: (N,) names of source files.
        weights: Weight of each pattern, as in the setting batch.mixture. Their order is ignored.

    Raises:
        PlanError: a pattern matches no file, a file matches no pattern or several, or no weight
            is positive. The message names them.
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
    """(count,) groups in the order of the run; each source gets its share of the visits.

    An epoch has G visits. A source's share of them is rounded up or down at random, without bias,
    and the order within the epoch is random. Each source goes through one permutation of its
    groups after another, across epochs.

    Args:
        source: (G,) source of each group.
        share: (P,) share of each source.
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
    """(size,) source of each visit, by systematic sampling and a shuffle."""
    ends = np.cumsum(share)
    ends /= ends[-1]  # so that no rounding error gives a visit to a source of weight 0
    edges = np.minimum(np.floor(np.append(0, ends) * size + rng.random()), size).astype(np.int64)
    return rng.permutation(np.repeat(np.arange(len(share)), np.diff(edges)))
