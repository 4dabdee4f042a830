"""The index of a token store as numpy arrays: everything that plans, losses and groups need.

Reads neither files nor tokens. Dimensions: N = examples, R = responses of all examples,
S = segments of all prompts.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True)
class Columns:
    """One array for each column of the index. Ragged columns are flat, with a `*_start` array."""

    prompt_length: np.ndarray
    """(N,) int64 tokens, including the control token that opens the response."""

    response_count: np.ndarray
    """(N,) int64 responses of each example."""

    response_start: np.ndarray
    """(N + 1,) int64 where each example's responses begin in the (R,) arrays."""

    response_length: np.ndarray
    """(R,) int64 tokens, including the end token."""

    order_score: np.ndarray
    """(R,) float64 score of the objective that orders the responses; NaN if there is none."""

    desirable: np.ndarray
    """(R,) int8: 1, 0, or -1 for unknown."""

    weight: np.ndarray
    """(N,) float64."""

    margin: np.ndarray
    """(N,) float64."""

    meta_prompt: np.ndarray
    """(N,) int64 hash of System Info and User Info; the encoder's NO_META_PROMPT if both are
    empty."""

    conversation: np.ndarray
    """(N,) int64 hash of the conversation's key."""

    split: np.ndarray
    """(N,) numpy strings, train or held_out."""

    source_file: np.ndarray
    """(N,) str objects."""

    source_row: np.ndarray
    """(N,) int64 number of the row in its file, from 0."""

    segment_start: np.ndarray
    """(N + 1,) int64 where each prompt's segments begin in the (S,) arrays."""

    segment_tier: np.ndarray
    """(S,) int8 index of the segment's tier in TIERS."""

    segment_length: np.ndarray
    """(S,) int64 tokens."""


def index_columns(index: pa.Table) -> Columns:
    """Convert an index table with ENCODED_SCHEMA's columns to arrays."""
    index = index.combine_chunks()
    responses, lengths = _ragged(index, "response_lengths")
    segments, tiers = _ragged(index, "segment_tiers")
    desirable = _ragged(index, "desirable")[1]
    return Columns(
        prompt_length=_numbers(index, "prompt_length"),
        response_count=np.diff(responses),
        response_start=responses,
        response_length=lengths.to_numpy(zero_copy_only=False).astype(np.int64),
        order_score=_order_scores(index, responses),
        desirable=pc.fill_null(desirable.cast(pa.int8()), -1).to_numpy(zero_copy_only=False),
        weight=_numbers(index, "weight"),
        margin=_numbers(index, "margin"),
        meta_prompt=_numbers(index, "meta_prompt"),
        conversation=_numbers(index, "conversation"),
        split=_strings(index, "split").astype(str),
        source_file=_strings(index, "source_file"),
        source_row=_numbers(index, "source_row"),
        segment_start=segments,
        segment_tier=tiers.to_numpy(zero_copy_only=False),
        segment_length=_ragged(index, "segment_lengths")[1]
        .to_numpy(zero_copy_only=False)
        .astype(np.int64),
    )


def _numbers(index: pa.Table, name: str) -> np.ndarray:
    numbers = index.column(name).to_numpy()
    return numbers if numbers.dtype == np.float64 else numbers.astype(np.int64)


def _strings(index: pa.Table, name: str) -> np.ndarray:
    """(N,) str objects; equal strings are one object."""
    encoded = pc.dictionary_encode(index.column(name).combine_chunks())  # pyright: ignore
    return np.array(encoded.dictionary.to_pylist(), dtype=object)[encoded.indices.to_numpy()]


def _ragged(index: pa.Table, name: str) -> tuple[np.ndarray, pa.Array]:
    """(N + 1,) starts, and the flat values of a list column."""
    lists: Any = index.column(name).combine_chunks()
    counts = lists.value_lengths().to_numpy()
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), lists.flatten()


def _order_scores(index: pa.Table, responses: np.ndarray) -> np.ndarray:
    """(R,) score of each response by its example's ordering objective; NaN if there is none."""
    starts, objectives = _ragged(index, "objectives")
    order_by = index.column("order_by").combine_chunks()
    owner = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    wanted_name = order_by.take(pa.array(owner))
    hits = np.flatnonzero(pc.equal(objectives, wanted_name).to_numpy(False))  # pyright: ignore
    place = np.full(len(starts) - 1, -1)
    place[owner[hits]] = hits - starts[owner[hits]]
    score_starts, scores = _ragged_scores(index)
    wanted = np.repeat(place, np.diff(responses))
    found = np.full(len(wanted), np.nan)
    is_scored = wanted >= 0
    values = scores.to_numpy(zero_copy_only=False).astype(np.float64)
    found[is_scored] = values[score_starts[:-1][is_scored] + wanted[is_scored]]
    return found


def _ragged_scores(index: pa.Table) -> tuple[np.ndarray, pa.Array]:
    by_response: Any = _ragged(index, "scores")[1]
    counts = by_response.value_lengths().to_numpy(zero_copy_only=False)
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), by_response.flatten()
