"""Reads sequences back from a micro-batch: what the model sees, and what it must predict.

The inverse of `trees`. Uses only the arrays that the model and the loss receive.
"""

from typing import NamedTuple

import numpy as np

from metaalign.steps.trees import Rows


class Unpacked(NamedTuple):
    """One sequence of a micro-batch."""

    tokens: np.ndarray
    """(n,) token ids that the sequence's last predictor sees, then the token that it predicts."""

    is_target: np.ndarray
    """(n,) bool, whether the token is a target of the loss."""


def unpack(rows: Rows, slot: int) -> Unpacked:
    """Reconstruct the sequence of one slot.

    Args:
        slot: Below `rows.num_sequences`.
    """
    own = rows.sequence == slot
    predictor, target = rows.predictor[own], rows.target[own]
    place = rows.positions.ravel()[predictor] + 1
    last = place.argmax()
    row, query = divmod(int(predictor[last]), rows.tokens.shape[1])
    seen = rows.subtree_end[row, : query + 1] > query
    tokens = np.append(rows.tokens[row, : query + 1][seen], target[last])
    is_target = np.zeros(len(tokens), dtype=bool)
    is_target[place] = True
    tokens[place] = target
    return Unpacked(tokens, is_target)
