"""Sequences of tokens -> rows of prefix trees, one worker's micro-batch at a time.

Imports no model. A row is the depth-first walk of the trees of its sequences: a prefix that
several sequences share is stored once, also across examples. A row of "a b c" and "a b d e":

    row position   0  1  2  3  4
    token          a  b  c  d  e
    depth          0  1  2  2  3
    subtree_end    5  5  3  5  5

Token q sees token k exactly when k <= q < subtree_end[k].

Dimensions: R = rows, L = length of a row, S = sequences, T = targets, padding included.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from metaalign.steps.forest import Forest, shared_prefixes, sort_sequences
from metaalign.steps.plan import MicroLayout
from metaalign.steps.selection import Selection
from metaalign.store.token_store import TokenStore


class Sequence(NamedTuple):
    """A prompt and one of its responses, as tokens, and where they come from."""

    tokens: np.ndarray
    """(prompt + response,) integers."""

    prompt_length: int
    row: int
    """Row of the micro-batch that it is laid out in."""

    example: int = 0
    position: int = 0
    response: int = 0
    occurrence: int = 0
    """These four fields are defined as in `Rows`."""


@dataclass(frozen=True)
class Rows:
    """One worker's micro-batch. All arrays are int64."""

    tokens: np.ndarray
    """(R, L) token ids; padding 0."""

    positions: np.ndarray
    """(R, L) depths in the tree; padding 0."""

    subtree_end: np.ndarray
    """(R, L) row position where the subtree under a token ends. Padding sees only itself."""

    predictor: np.ndarray
    """(T,) index into the flattened rows of the token whose hidden state predicts; padding 0."""

    target: np.ndarray
    """(T,) token id that is predicted; padding 0."""

    sequence: np.ndarray
    """(T,) slot of the sequence that a target belongs to, ascending; padding S."""

    example: np.ndarray
    """(S,) row of the store."""

    position: np.ndarray
    """(S,) position in the selection."""

    response: np.ndarray
    """(S,) number of the response in the example that it was written for."""

    occurrence: np.ndarray
    """(S,) number of the example in this micro-batch, ascending. An example that is drawn twice has
    two numbers, so its responses stay apart."""

    real_tokens: int
    """Number of tokens that are neither padding nor dummies."""

    @property
    def num_sequences(self) -> int:
        """S, without dummies."""
        return len(self.example)


def response_index(selection: Selection, rows: Rows) -> np.ndarray:
    """(S,) index of each sequence of a micro-batch in the flat responses of the selection."""
    count = np.bincount(rows.occurrence)
    within = np.arange(rows.num_sequences) - (np.cumsum(count) - count)[rows.occurrence]
    flat = selection.response_start[rows.position] + within
    assert (selection.response[flat] == rows.response).all()
    return flat


def measure_forest(store: TokenStore, selection: Selection, positions: np.ndarray) -> Forest:
    """The forest of some examples: the order of their sequences and the prefixes they share."""
    sequences = [
        sequence._replace(occurrence=item)
        for item, position in enumerate(positions.tolist())
        for sequence in _read(store, selection, position)
    ]
    flat, start, length = _flatten(sequences)
    anywhere = np.zeros_like(start)
    order = sort_sequences(flat, start, length, anywhere)
    return Forest(
        owner=np.array([sequence.occurrence for sequence in sequences], dtype=np.int64)[order],
        length=length[order],
        shared=shared_prefixes(flat, start[order], length[order], anywhere),
    )


def build_rows(store: TokenStore, selection: Selection, micro: MicroLayout, rank: int) -> Rows:
    """Read the sequences of one worker's share of a micro-batch and lay them out as rows."""
    sequences: list[Sequence] = []
    occurrence = 0
    for number, members in enumerate(micro.bins_by_rank[rank]):
        for position in members:
            for sequence in _read(store, selection, position):
                row = number if micro.layout == "tree" else len(sequences)
                sequences.append(sequence._replace(row=row, occurrence=occurrence))
            occurrence += 1
    return lay_out_rows(
        sequences, num_rows=micro.num_rows, num_targets=micro.num_targets, length=micro.length
    )


def _read(store: TokenStore, selection: Selection, position: int) -> Iterator[Sequence]:
    """The used sequences of one example."""
    example = int(selection.example[position])
    prompt = store.prompt(example)
    used = slice(*selection.response_start[position : position + 2])
    source, number = selection.response_row[used].tolist(), selection.response[used].tolist()
    for row, response in zip(source, number, strict=True):
        tokens = np.concatenate([prompt, store.response(row, response)])
        yield Sequence(tokens, len(prompt), 0, example, position, response)


def lay_out_rows(
    sequences: list[Sequence], *, num_rows: int, num_targets: int, length: int
) -> Rows:
    """Lay out the prefix trees of each row's sequences. A slot is an index into `sequences`."""
    walk = _walk(sequences) if sequences else _EMPTY_WALK
    size = np.bincount(walk.row, minlength=num_rows)
    first = np.cumsum(size) - size
    assert size.max() <= length, f"a row of {size.max()} tokens, laid out as {length}"
    place = walk.row * length + np.arange(len(walk.row)) - first[walk.row]

    tokens = np.zeros(num_rows * length, dtype=np.int64)
    tokens[place] = walk.token
    positions = np.zeros_like(tokens)
    positions[place] = walk.depth
    subtree_end = np.tile(np.arange(1, length + 1), num_rows)
    subtree_end[place] = walk.end - first[walk.row]
    padding = num_targets - len(walk.target)
    assert padding >= 0
    counts = [len(sequence.tokens) - sequence.prompt_length for sequence in sequences]
    return Rows(
        tokens=tokens.reshape(num_rows, length),
        positions=positions.reshape(num_rows, length),
        subtree_end=subtree_end.reshape(num_rows, length),
        predictor=np.pad(place[walk.predictor], (0, padding)),
        target=np.pad(walk.target, (0, padding)),
        sequence=np.repeat(np.arange(len(sequences) + 1), [*counts, padding]),
        example=np.array([sequence.example for sequence in sequences], dtype=np.int64),
        position=np.array([sequence.position for sequence in sequences], dtype=np.int64),
        response=np.array([sequence.response for sequence in sequences], dtype=np.int64),
        occurrence=np.array([sequence.occurrence for sequence in sequences], dtype=np.int64),
        real_tokens=len(walk.row),
    )


class _Walk(NamedTuple):
    """The nodes of all trees, depth first, by row; and the targets, by slot."""

    row: np.ndarray
    token: np.ndarray
    depth: np.ndarray
    end: np.ndarray
    """(nodes,) the node after the last one of the subtree."""
    predictor: np.ndarray
    """(targets,) the node that predicts."""
    target: np.ndarray
    """(targets,) the token that is predicted."""


_EMPTY_WALK = _Walk(*[np.zeros(0, dtype=np.int64)] * 6)


def _walk(sequences: list[Sequence]) -> _Walk:
    """Walk the trees of all sequences, sorted by row and then token by token.

    In this order the sequences are the leaves of the trees from left to right. Each shares a
    prefix with the sequence before it. Its further tokens become new nodes below that prefix, and
    the subtrees of the earlier sequence's nodes below the prefix end there.
    """
    flat, start, length = _flatten(sequences)
    row = np.array([sequence.row for sequence in sequences])
    order = sort_sequences(flat, start, length, row)
    row = row[order]
    shared = shared_prefixes(flat, start[order], length[order], row)
    new = length[order] - shared
    first = np.cumsum(new) - new

    nodes = np.arange(new.sum())
    end = np.empty_like(nodes)
    path = np.empty(length.max(), dtype=np.int64)
    predictors: list[np.ndarray] = [nodes] * len(sequences)
    before = 0
    for slot, node, depth in zip(order.tolist(), first.tolist(), shared.tolist(), strict=True):
        size = len(sequences[slot].tokens)
        end[path[depth:before]] = node
        path[depth:size] = nodes[node : node + size - depth]
        predictors[slot] = path[sequences[slot].prompt_length - 1 : size - 1].copy()
        before = size
    end[path[:before]] = len(nodes)

    depth = nodes + np.repeat(shared - first, new)
    targets = [sequence.tokens[sequence.prompt_length :] for sequence in sequences]
    return _Walk(
        row=np.repeat(row, new),
        token=flat[depth + np.repeat(start[order], new)],
        depth=depth,
        end=end,
        predictor=np.concatenate(predictors),
        target=np.concatenate(targets).astype(np.int64),
    )


def _flatten(sequences: list[Sequence]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All tokens, int64; (S,) where each sequence begins in them; (S,) its length."""
    length = np.array([len(sequence.tokens) for sequence in sequences])
    flat = np.concatenate([sequence.tokens for sequence in sequences]).astype(np.int64)
    return flat, np.cumsum(length) - length, length
