"""Packs the items of a forest into rows of about equal length. Reads lengths and no tokens.

Few rows suffice if items that share tokens stay in one row and the rows have even lengths. So the
items, sorted by their tokens, are cut into pieces where neighbours share least. The pieces are
dealt, longest first, each to the row that is then the shortest. At last single items move from the
longest row to short ones. Coarse pieces share more tokens and fine pieces give more even rows, so
several cuts are tried, and the one whose longest row is the shortest is kept.

Dimensions: N = items, R = rows.
"""

import heapq
from bisect import bisect

import numpy as np

from metaalign.steps.forest import Forest

_PIECES = (2, 3, 4, 6, 8, 16)
"""Numbers of pieces per row that are tried, from coarse to fine."""

_EVEN = 1.005
"""The search ends once the longest row is at most this multiple of the least possible length."""

_LEVELLED = 3
"""How many of the best deals are improved by moving single items. The most even deal may have no
move that helps, so it alone would not do."""

_SHORT = 4
"""How many of the shortest rows an item may move to. One may already hold tokens it shares."""


def pack(forest: Forest, *, budget: int, multiple: int) -> tuple[np.ndarray, np.ndarray]:
    """Pack every item into exactly one row, in few rows of about equal length.

    Args:
        budget: Maximum number of tokens of a row. No single item may be longer.
        multiple: The number of rows is a multiple of this.

    Returns:
        (N,) row of each item, and (R,) exact number of tokens of each row.
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
    """Of the packings tried with `num_rows` rows, the one whose longest row is the shortest.

    Moving single items costs more than dealing pieces, so only the best deals are improved.
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
        # Finer pieces never share more tokens, so rows that overflow now would overflow with them.
        if even or len(begins) == len(line.order) or sizes.mean() > budget:
            break
    best = sorted(deals, key=longest)[:_LEVELLED]
    levelled = [sized(line.level(row[line.order], num_rows)) for row, _ in best]
    return min(*best, *levelled, key=longest)


class _Line:
    """The items of a forest in a line, sorted by their first sequences. A place is an index in it.

    Only first sequences are compared to find the tokens that two items share. This underestimates
    the sharing if an item continues a later sequence of another, as a conversation's next turn may.
    """

    def __init__(self, forest: Forest) -> None:
        self.forest = forest
        first = np.unique(forest.owner, return_index=True)[1]
        self.order = np.argsort(first, kind="stable")
        """(N,) item at each place."""
        count = len(first)
        self.alone = forest.sizes(np.arange(count), count)[self.order]
        """(N,) tokens of each item alone in a row."""
        begin = first[self.order]
        self.own = np.bincount(forest.owner, forest.length - forest.shared)[self.order]
        """(N,) tokens of each item that it does not share with the items before it."""
        shared = np.append(0, forest.prefixes(begin[:-1], begin[1:]))
        levels = [shared]
        while (reach := 1 << (len(levels) - 1)) * 2 <= count:
            least = np.minimum(levels[-1][:-reach], levels[-1][reach:])
            levels.append(np.pad(least, (0, reach)))
        self.least = np.stack(levels)
        """(log2 N, N) at level k, the minimum of `shared` over the 2^k places from this one on."""

    def shared(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """(n,) number of tokens that pairs of items share, by their places, left < right."""
        level = np.frexp(right - left)[1] - 1
        return np.minimum(self.least[level, left + 1], self.least[level, right + 1 - (1 << level)])

    def cut(self, num_pieces: int) -> np.ndarray:
        """Places where about `num_pieces` pieces of about equal size begin.

        Each piece begins where neighbours share least. With at least as many pieces as items,
        every item is a piece, so a packing with one item a row can be reached.
        """
        if num_pieces >= len(self.order):
            return np.arange(len(self.order))
        before = (np.cumsum(self.own) - self.own) * (num_pieces / self.forest.size)
        near = np.rint(before)
        best_first = np.lexsort((np.abs(before - near), self.least[0], near))
        begins = best_first[np.unique(near[best_first], return_index=True)[1]]
        return np.unique(np.append(0, begins))

    def deal(self, begins: np.ndarray, num_rows: int) -> np.ndarray:
        """(N,) row of each item. The longest piece first, each to the currently shortest row."""
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
        """(N,) row of each item after moves from the longest row to short ones, while they help."""
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
        """(n,) tokens that each item adds to a row that holds `members`; both are ascending."""
        place = np.searchsorted(members, items)
        has_left = np.flatnonzero(place > 0)
        after = np.searchsorted(members, items, side="right")
        has_right = np.flatnonzero(after < len(members))
        known = np.zeros(len(items), dtype=np.int64)
        known[has_left] = self.shared(members[place[has_left] - 1], items[has_left])
        right = self.shared(items[has_right], members[after[has_right]])
        known[has_right] = np.maximum(known[has_right], right)
        return self.alone[items] - known
