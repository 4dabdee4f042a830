"""Rows of about equal length for the items of a forest. Numbers only: no tokens, no workers.

To fill few rows, what shares tokens must stay together, and the rows must come out even. So the
items, in the order of their tokens, are cut into pieces where neighbours share least; the pieces
are dealt, the longest first, each to the row that is shortest by then; then single items move from
the longest row to short ones. Coarse pieces share more and fine ones even out better: several
cuts are tried, and the one whose longest row is the shortest wins.

Dimensions: N = items, R = rows.
"""

import heapq
from bisect import bisect

import numpy as np

from metaalign.steps.forest import Forest

_PIECES = (2, 3, 4, 6, 8, 16)
"""Pieces of a row that are tried, from coarse to fine."""

_EVEN = 1.005
"""A longest row of this many times the least possible ends the search."""

_LEVELLED = 3
"""Deals that are improved by moves of single items: what is even already may leave no move."""

_SHORT = 4
"""Shortest rows that a single item may move to: one of them may hold what it shares."""


def pack(forest: Forest, *, budget: int, multiple: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows that hold every item once: few of them, and all about equally long.

    Args:
        budget: Tokens of a row at most. No item alone may be longer.
        multiple: What the number of rows must be a multiple of.

    Returns:
        (N,) row of each item, and (R,) tokens of each row, exact.
    """
    line = _Line(forest)
    wanted = -(-forest.size // budget)
    while True:
        num_rows = -(-wanted // multiple) * multiple
        row, sizes = _most_even(line, num_rows, budget)
        if sizes.max() <= budget:
            return row, sizes
        wanted = num_rows + max(1, int(np.maximum(sizes - budget, 0).sum()) // budget)


def _most_even(line: "_Line", num_rows: int, budget: int) -> tuple[np.ndarray, np.ndarray]:
    """The packing into so many rows whose longest is the shortest of those tried.

    Moving single items costs more than dealing pieces, so only the best deals are improved by it.
    """

    def sized(row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        by_item = np.empty_like(row)
        by_item[line.order] = row
        return by_item, line.forest.sizes(by_item, num_rows)

    def longest(packing: tuple[np.ndarray, np.ndarray]) -> int:
        return packing[1].max()

    deals = []
    for pieces in _PIECES:
        begins = line.cut(num_rows * pieces)
        deals.append(sized(line.deal(begins, num_rows)))
        sizes = deals[-1][1]
        even = sizes.max() * num_rows <= _EVEN * line.forest.size
        # Finer pieces never share more: what is too much for the rows stays so.
        if even or len(begins) == len(line.order) or sizes.mean() > budget:
            break
    best = sorted(deals, key=longest)[:_LEVELLED]
    levelled = [sized(line.level(row[line.order], num_rows)) for row, _ in best]
    return min(*best, *levelled, key=longest)


class _Line:
    """The items of a forest by their first sequences; they are named by their places in it.

    What items share is told by their first sequences. That is less than the truth where an item
    continues another's later sequence, as a conversation's next turn may.
    """

    def __init__(self, forest: Forest) -> None:
        self.forest = forest
        first = np.unique(forest.owner, return_index=True)[1]
        self.order = np.argsort(first, kind="stable")
        """(N,) item at each place."""
        count = len(first)
        self.alone = forest.sizes(np.arange(count), count)[self.order]
        """(N,) tokens of each item in a row of its own."""
        begin = first[self.order]
        self.own = np.bincount(forest.owner, forest.length - forest.shared)[self.order]
        """(N,) tokens of each that it does not share with what stands before it."""
        shared = np.append(0, forest.prefixes(begin[:-1], begin[1:]))
        levels = [shared]
        while (reach := 1 << (len(levels) - 1)) * 2 <= count:
            least = np.minimum(levels[-1][:-reach], levels[-1][reach:])
            levels.append(np.pad(least, (0, reach)))
        self.least = np.stack(levels)
        """(log2 N, N) at level k, the least of 2^k neighbours' shared tokens from here on."""

    def shared(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """(n,) tokens that pairs of items share, left < right."""
        level = np.frexp(right - left)[1] - 1
        return np.minimum(self.least[level, left + 1], self.least[level, right + 1 - (1 << level)])

    def cut(self, num_pieces: int) -> np.ndarray:
        """Where about so many pieces begin, of about equal size, each where least is shared.

        As many pieces as items are one each: then as many rows as items hold all of them.
        """
        if num_pieces >= len(self.order):
            return np.arange(len(self.order))
        before = (np.cumsum(self.own) - self.own) * (num_pieces / self.forest.size)
        near = np.rint(before)
        best_first = np.lexsort((np.abs(before - near), self.least[0], near))
        begins = best_first[np.unique(near[best_first], return_index=True)[1]]
        return np.unique(np.append(0, begins))

    def deal(self, begins: np.ndarray, num_rows: int) -> np.ndarray:
        """(N,) row of each item: the longest piece first, to the row that is shortest by then."""
        counts = np.diff(np.append(begins, len(self.order)))
        piece = np.repeat(np.arange(len(begins)), counts)
        by_item = np.empty_like(piece)
        by_item[self.order] = piece
        sizes = self.forest.sizes(by_item, len(begins))
        begin, length = begins.tolist(), sizes.tolist()
        held: list[list[int]] = [[] for _ in range(num_rows)]
        shortest = [(0, row) for row in range(num_rows)]
        chosen = np.empty(len(begins), dtype=np.int64)
        for number in np.argsort(-sizes, kind="stable").tolist():
            load, row = shortest[0]
            place = bisect(held[row], number)
            known = 0
            if place:
                known = self._shared(begin[held[row][place - 1] + 1] - 1, begin[number])
            if place < len(held[row]):
                last = begin[number + 1] - 1
                known = max(known, self._shared(last, begin[held[row][place]]))
            held[row].insert(place, number)
            chosen[number] = row
            heapq.heapreplace(shortest, (load + length[number] - known, row))
        return chosen[piece]

    def _shared(self, left: int, right: int) -> int:
        level = (right - left).bit_length() - 1
        least = self.least[level]
        return int(min(least[left + 1], least[right + 1 - (1 << level)]))

    def level(self, row: np.ndarray, num_rows: int) -> np.ndarray:
        """(N,) the rows after moves of items from the longest to a short one, while they help."""
        row = row.copy()
        by_item = np.empty_like(row)
        by_item[self.order] = row
        sizes = self.forest.sizes(by_item, num_rows)
        for _ in range(4 * num_rows):
            longest = int(sizes.argmax())
            members = np.flatnonzero(row == longest)
            left = sizes[longest] - self.added(members, members)
            short = np.argsort(sizes, kind="stable")[:_SHORT]
            grown = np.stack(
                [sizes[to] + self.added(members, np.flatnonzero(row == to)) for to in short]
            )
            after = np.maximum(left, grown)
            to, item = np.unravel_index(after.argmin(), after.shape)
            if after[to, item] >= sizes[longest]:
                break
            row[members[item]] = short[to]
            sizes[longest], sizes[short[to]] = left[item], grown[to, item]
        return row

    def added(self, items: np.ndarray, members: np.ndarray) -> np.ndarray:
        """(n,) tokens that each item adds to a row of these others; both ascending."""
        place = np.searchsorted(members, items)
        has_left = np.flatnonzero(place > 0)
        after = np.searchsorted(members, items, side="right")
        has_right = np.flatnonzero(after < len(members))
        known = np.zeros(len(items), dtype=np.int64)
        known[has_left] = self.shared(members[place[has_left] - 1], items[has_left])
        right = self.shared(items[has_right], members[after[has_right]])
        known[has_right] = np.maximum(known[has_right], right)
        return self.alone[items] - known
