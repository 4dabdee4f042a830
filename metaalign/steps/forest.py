"""Sorted sequences and the prefixes they share, from which the size of any forest follows.

Reads token ids once, to sort and compare them. Imports neither the store nor rows. In sorted order
each sequence adds to its tree the tokens that it does not share with the sequence before it. Two
sequences that are not neighbours share the minimum over the neighbours between them:

    tokens    length   shared
    a b c        3        0      all three form a tree of 3 + 2 + 1 = 6 tokens;
    a b d e      4        2      the first and the last form one of 3 + 2 - 1 = 4
    a x          2        1

Dimensions: S = sequences, N = items (the examples of a step).
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Forest:
    """Sorted sequences, as lengths and shared prefixes. Sizes computed from them are exact."""

    owner: np.ndarray
    """(S,) int64, the item that each sequence belongs to. Every item has at least one."""

    length: np.ndarray
    """(S,) int64 tokens."""

    shared: np.ndarray
    """(S,) int64 leading tokens that each shares with the sequence before it; 0 for the first."""

    @property
    def size(self) -> int:
        """Number of tokens when all sequences form one forest."""
        return int((self.length - self.shared).sum())

    def sizes(self, part: np.ndarray, num_parts: int) -> np.ndarray:
        """(num_parts,) number of tokens of the forest that the items of each part form.

        Args:
            part: (N,) the part that each item belongs to.
        """
        by_sequence = part[self.owner]
        order = np.argsort(by_sequence, kind="stable")
        kept = by_sequence[order]
        follows = np.flatnonzero(kept[1:] == kept[:-1])
        tokens = np.bincount(by_sequence, self.length, num_parts)
        least = self.prefixes(order[follows], order[follows + 1])
        return (tokens - np.bincount(kept[follows], least, num_parts)).astype(np.int64)

    def prefixes(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """(n,) number of leading tokens that pairs of sequences share.

        Args:
            left: (n,) places of the first sequences in sorted order.
            right: (n,) places of the second ones, each greater than its `left`.
        """
        spans = np.stack([left, right], axis=1).ravel() + 1
        return np.minimum.reduceat(np.append(self.shared, 0), spans)[::2]


def sort_sequences(
    flat: np.ndarray, start: np.ndarray, length: np.ndarray, row: np.ndarray
) -> np.ndarray:
    """(S,) indices that sort the sequences by row, then token by token.

    Args:
        flat: Token ids of all sequences.
        start: (S,) where each begins in `flat`.
        length: (S,) tokens of each.
        row: (S,) row of each.
    """
    raw = flat.astype(">u4").tobytes()  # big-endian bytes compare like the numbers
    begin, end = (4 * start).tolist(), (4 * (start + length)).tolist()
    keys = [(r, raw[b:e]) for r, b, e in zip(row.tolist(), begin, end, strict=True)]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)


def shared_prefixes(
    flat: np.ndarray, start: np.ndarray, length: np.ndarray, row: np.ndarray
) -> np.ndarray:
    """(S,) number of leading tokens that each sequence shares with the one before it in its row.

    Args as in `sort_sequences`, with the sequences in sorted order.
    """
    compared = np.where(np.diff(row) == 0, np.minimum(length[1:], length[:-1]), 0)
    begin = np.cumsum(compared) - compared
    offset = np.arange(compared.sum()) - np.repeat(begin, compared)
    differs = (
        flat[np.repeat(start[1:], compared) + offset]
        != (flat[np.repeat(start[:-1], compared) + offset])
    )
    shared = compared.copy()
    place = np.flatnonzero(differs)[::-1]
    owner = np.repeat(np.arange(len(compared)), compared)[place]
    shared[owner] = offset[place]  # descending, so the first difference is written last
    return np.append(0, shared)
