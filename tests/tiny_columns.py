"""An index written by hand, for tests that need lengths and scores but no tokens."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from metaalign.steps.forest import Forest
from metaalign.steps.selection import Selection, ranges
from metaalign.store.columns import Columns
from metaalign.template import TIERS


class Item(NamedTuple):
    """One example. Its prompt is its segments and the token that opens the response."""

    responses: Sequence[int] = (3,)
    """Tokens of each."""
    scores: Sequence[float | None] = (None,)
    desirable: Sequence[int] = ()
    segments: Sequence[tuple[str, int]] = (("user_query", 4),)
    weight: float = 1.0
    margin: float = 0.0
    meta_prompt: int = 0
    conversation: int = 0
    split: str = "train"
    source_file: str = "tiny.jsonl"


def make_columns(items: Sequence[Item]) -> Columns:
    """The index of these examples, in this order."""
    count = np.array([len(item.responses) for item in items], dtype=np.int64)
    segments = np.array([len(item.segments) for item in items], dtype=np.int64)
    scores = [score for item in items for score in item.scores]
    unknown = [item.desirable or [-1] * len(item.responses) for item in items]
    return Columns(
        prompt_length=np.array([1 + sum(n for _, n in item.segments) for item in items]),
        response_count=count,
        response_start=np.append(0, np.cumsum(count)),
        response_length=np.array([n for item in items for n in item.responses]),
        order_score=np.array([np.nan if score is None else score for score in scores]),
        desirable=np.array([mark for marks in unknown for mark in marks], dtype=np.int8),
        weight=np.array([item.weight for item in items]),
        margin=np.array([item.margin for item in items]),
        meta_prompt=np.array([item.meta_prompt for item in items]),
        conversation=np.array([item.conversation for item in items]),
        split=np.array([item.split for item in items]),
        source_file=np.array([item.source_file for item in items], dtype=object),
        source_row=np.arange(len(items)),
        segment_start=np.append(0, np.cumsum(segments)),
        segment_tier=np.array(
            [TIERS.index(tier) for item in items for tier, _ in item.segments], dtype=np.int8
        ),
        segment_length=np.array([n for item in items for _, n in item.segments]),
    )


def measure_apart(selection: Selection, positions: np.ndarray) -> Forest:
    """The forest of examples that share nothing: the responses of one share its prompt alone."""
    flat, start = ranges(selection.response_start, positions)
    owner = np.repeat(np.arange(len(positions)), np.diff(start))
    shared = selection.prompt_length[positions][owner]
    shared[start[:-1]] = 0
    return Forest(owner=owner, length=selection.sequence_length[flat], shared=shared)
