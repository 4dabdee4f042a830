"""The probe's sequences, packed in two ways that must give the same log-probs and gradients.

Imports no model.
"""

from typing import NamedTuple

import numpy as np

from metaalign.steps.plan import Layout
from metaalign.steps.trees import Rows, Sequence, lay_out_rows
from metaalign.train.model.tiny_copy import LONGEST_ROW, LONGEST_SEQUENCE, VOCABULARY

_PROMPTS = (2, 30, 3, 14, 39, 22, 37, 33, 38, 28)
"""Number of tokens in each example's prompt. The first and third are shorter than any window."""

_RESPONSES = (1, 6)
"""Number of tokens in the two responses to each prompt."""

_SHARED = 9
"""Number of tokens in the common prefix of the longer prompts."""


class MicroBatch(NamedTuple):
    """Rows that the model gets in one forward pass."""

    rows: Rows
    members: list[int]
    """Indices of its sequences in the list of all."""


def probe_sequences() -> list[Sequence]:
    """Two responses to each of ten prompts. A sequence has 3 to 45 tokens."""
    rng = np.random.default_rng(0)
    meta_prompt = rng.integers(0, VOCABULARY, _SHARED)
    sequences = []
    for example, length in enumerate(_PROMPTS):
        prompt = rng.integers(0, VOCABULARY, length)
        if length > _SHARED:
            prompt[:_SHARED] = meta_prompt
        for response in _RESPONSES:
            tokens = np.append(prompt, rng.integers(0, VOCABULARY, response))
            sequences.append(Sequence(tokens, length, 0, example))
    assert max(len(sequence.tokens) for sequence in sequences) == LONGEST_SEQUENCE
    return sequences


def packings(sequences: list[Sequence], layout: Layout) -> list[list[MicroBatch]]:
    """Two packings of all sequences: in one micro-batch, and in one for the short and one for the
    long sequences.

    A sequence's results must depend neither on its micro-batch, nor on its position in a row, nor
    on the sequences before and after it, nor on a dummy row.
    """
    by_length = sorted(range(len(sequences)), key=lambda slot: len(sequences[slot].tokens))
    short, long = by_length[: len(by_length) // 2], by_length[len(by_length) // 2 :]
    if layout == "single":
        together = _single(sequences, list(range(len(sequences))), LONGEST_SEQUENCE)
        longest = len(sequences[short[-1]].tokens)
        apart = [_single(sequences, short, longest), _single(sequences, long, LONGEST_SEQUENCE)]
        return [[together], apart]
    members = list(range(len(sequences)))
    together = _trees(sequences, members, rows=[0] * len(members), length=LONGEST_ROW)
    middle = LONGEST_ROW // 2
    # The long ones take two rows, so that an example's position in its row differs.
    rows = [(sequences[slot].example // 2) % 2 for slot in long]
    apart = [
        _trees(sequences, short, rows=[0] * len(short), length=middle),
        _trees(sequences, long, rows=rows, length=middle),
    ]
    return [[together], apart]


def _single(sequences: list[Sequence], members: list[int], length: int) -> MicroBatch:
    return _trees(sequences, members, rows=list(range(len(members))), length=length)


def _trees(
    sequences: list[Sequence], members: list[int], *, rows: list[int], length: int
) -> MicroBatch:
    laid = [sequences[slot]._replace(row=row) for slot, row in zip(members, rows, strict=True)]
    targets = sum(len(sequence.tokens) - sequence.prompt_length for sequence in laid)
    laid_out = lay_out_rows(laid, num_rows=max(rows) + 2, num_targets=targets, length=length)
    return MicroBatch(laid_out, members)
