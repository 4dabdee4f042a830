"""Training examples that all but repeat a held-out one, found by MinHash.

Two prompts are near-duplicates where the Jaccard similarity of their word triples, as MinHash
estimates it (Broder 1997; datasketch's LSH finds the candidates), reaches a threshold. The
signatures of the held-out split are held in memory; nothing of the training split is.
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
"""Consecutive words that are compared as one."""


def signature(example: Example) -> np.ndarray:
    """(128,) of what users say; of a persona's statements, where all are asked the same, those."""
    said = [turn.text for turn in example.turns if turn.role == "user"]
    if "persona" in example.tags:
        said = sorted(response.text for response in example.responses)
    words = re.findall(r"\w+", " ".join(said).casefold())
    around = [""] * (_WORDS - 1)
    padded = [*around, *words, *around]  # so that short texts have triples, too
    minhash = MinHash(num_perm=_PERMUTATIONS, scheme=_SCHEME)
    starts = range(len(padded) - _WORDS + 1)
    minhash.update_batch(" ".join(padded[i : i + _WORDS]).encode() for i in starts)
    return minhash.hashvalues


class HeldOutSignatures:
    """Those of the held-out examples of one part, kept in a file."""

    def __init__(self) -> None:
        self._rows: list[np.ndarray] = []

    def take(self, example: Example) -> bool:
        """Look at the next example; it is kept in any case."""
        if example.tags["split"] == HELD_OUT:
            self._rows.append(signature(example))
        return True

    def write(self, file: Path) -> None:
        """Whole or not at all, the same however often a task is run."""
        with whole_file(file) as unfinished, unfinished.open("wb") as stream:
            np.save(stream, np.array(self._rows).reshape(-1, _PERMUTATIONS))


class NearHeldOut:
    """Tells which training examples all but repeat a held-out one.

    Args:
        files: What `HeldOutSignatures.write` wrote.
        threshold: Similarity, 0 to 1, from which two are near-duplicates.
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
        """Whether an example may stay in its split."""
        if example.tags["split"] == HELD_OUT:
            return True
        own = _minhash(signature(example))
        candidates = self._lsh.query(own)
        return all(own.jaccard(self._known[key]) < self._threshold for key in candidates)


def _minhash(row: np.ndarray) -> MinHash:
    return MinHash(num_perm=_PERMUTATIONS, scheme=_SCHEME, hashvalues=row)
