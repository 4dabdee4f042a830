"""Finds training examples that are near-duplicates of a held-out one, by MinHash.

Two prompts are near-duplicates if the Jaccard similarity of their word triples, estimated by
MinHash (Broder 1997), reaches a threshold. datasketch's LSH finds the candidates. Memory holds the
signatures of the held-out split only.
"""

import re
from collections.abc import Hashable, Iterable
from pathlib import Path

import numpy as np
from datasketch import MinHash, MinHashLSH

from metaalign.examples import HELD_OUT, Example
from metaalign.folders import whole_file

_PERMUTATIONS, _SCHEME = 128, "affine32"
_WORDS = 3
"""Number of consecutive words that are compared as a unit."""


def signature(example: Example) -> np.ndarray:
    """(128,) MinHash of the user turns; for personas, whose prompts are equal, of statements."""
    texts = [turn.text for turn in example.turns if turn.role == "user"]
    if "persona" in example.tags:
        texts = sorted(response.text for response in example.responses)
    words = re.findall(r"\w+", " ".join(texts).casefold())
    around = [""] * (_WORDS - 1)
    padded = [*around, *words, *around]  # so that short texts also have triples
    minhash = MinHash(num_perm=_PERMUTATIONS, scheme=_SCHEME)
    starts = range(len(padded) - _WORDS + 1)
    minhash.update_batch(" ".join(padded[i : i + _WORDS]).encode() for i in starts)
    return minhash.hashvalues


class HeldOutSignatures:
    """Collects the signatures of one part's held-out examples and writes them to a file."""

    def __init__(self) -> None:
        self._rows: list[np.ndarray] = []

    def take(self, example: Example) -> bool:
        """Add the next example. Always returns true, so that it can take the place of `keeps`."""
        if example.tags["split"] == HELD_OUT:
            self._rows.append(signature(example))
        return True

    def write(self, file: Path) -> None:
        """Write the file atomically. A task that runs again writes the same file."""
        with whole_file(file) as unfinished, unfinished.open("wb") as stream:
            np.save(stream, np.array(self._rows).reshape(-1, _PERMUTATIONS))


class NearHeldOut:
    """Finds training examples that are near-duplicates of held-out ones.

    Args:
        files: Files that `HeldOutSignatures.write` wrote.
        threshold: Similarity, 0 to 1, at and above which two examples are near-duplicates.
    """

    def __init__(self, files: Iterable[Path], threshold: float) -> None:
        self._threshold = threshold
        self._lsh = MinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS)
        self._known: dict[Hashable, MinHash] = {}
        for file in files:
            for row in np.load(file):
                key = row.tobytes()
                if key not in self._known:
                    self._known[key] = _minhash(row)
                    self._lsh.insert(key, self._known[key])

    def keeps(self, example: Example) -> bool:
        """Whether an example is held out, or is no near-duplicate of a held-out one."""
        if example.tags["split"] == HELD_OUT:
            return True
        own = _minhash(signature(example))
        candidates = self._lsh.query(own)
        return all(own.jaccard(self._known[key]) < self._threshold for key in candidates)


def _minhash(row: np.ndarray) -> MinHash:
    return MinHash(num_perm=_PERMUTATIONS, scheme=_SCHEME, hashvalues=row)
