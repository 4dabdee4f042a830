"""Rows and log-probabilities written by hand, for tests of losses."""

import numpy as np
import torch
from torch import Tensor

from metaalign.steps.selection import Selection
from metaalign.steps.trees import Rows


def make_rows(selection: Selection, positions: list[int], padding: int = 0) -> Rows:
    """Rows of these examples; the losses read the targets' sequences and whose they are."""
    flat = [
        (occurrence, position, place)
        for occurrence, position in enumerate(positions)
        for place in range(*selection.response_start[position : position + 2])
    ]
    occurrence, position, place = np.array(flat, dtype=np.int64).reshape(-1, 3).T
    counts = [*selection.target_count[place], padding]
    empty = np.zeros((1, 8), dtype=np.int64)
    targets = np.zeros(sum(counts), dtype=np.int64)
    return Rows(
        tokens=empty,
        positions=empty,
        subtree_end=empty,
        predictor=targets,
        target=targets,
        sequence=np.repeat(np.arange(len(flat) + 1), counts),
        example=selection.example[position],
        position=position,
        response=selection.response[place],
        occurrence=occurrence,
        real_tokens=0,
    )


def spread(sums: list[float], rows: Rows, *, padding: float = -99.0) -> Tensor:
    """(T,) log-probabilities whose sums by sequence are these, and something for padding."""
    count = np.bincount(rows.sequence, minlength=len(sums) + 1)
    each = [*(total / n for total, n in zip(sums, count, strict=False)), padding]
    return torch.tensor(np.repeat(each, count), dtype=torch.float64, requires_grad=True)
