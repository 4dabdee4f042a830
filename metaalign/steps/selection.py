"""Selects the examples and responses that a loss trains on, from the index alone.

Reads no tokens. Dimensions: N = selected examples, K = used responses of one.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from metaalign.errors import PlanError
from metaalign.store.columns import Columns
from metaalign.store.encoder import NO_META_PROMPT
from metaalign.template import TIERS

GroupBy = Literal["example", "conversation", "meta_prompt"]

_CONVERSATIONS_TRIED = 32
"""How many of the following conversations are searched for a mismatched response."""


@dataclass(frozen=True)
class Selection:
    """Examples that one loss trains on, each with the responses that the loss uses.

    A *position* is an index into the (N,) arrays below; the *row* of the store is
    `example[position]`. The arrays over responses are flat: the responses of position i are
    `response_start[i]:response_start[i + 1]`.
    """

    example: np.ndarray
    """(N,) int64, row of the store."""

    response_start: np.ndarray
    """(N + 1,) int64, where each example's responses start in the four arrays below."""

    response: np.ndarray
    """(sum K,) int64, number of the response in the example that it was written for."""

    response_row: np.ndarray
    """(sum K,) int64, row of the store that holds the response: the example's own row, except for a
    mismatched response."""

    sequence_length: np.ndarray
    """(sum K,) int64, tokens of prompt and response."""

    target_count: np.ndarray
    """(sum K,) int64, predicted tokens: the response and its end token."""

    prompt_length: np.ndarray
    """(N,) int64, tokens."""

    tokens: np.ndarray
    """(N,) int64, prompt and all used responses: no tree of the example is larger."""

    loss_weight: np.ndarray
    """(N,) float64, the example's share of a step's denominator."""

    group: np.ndarray
    """(N,) int64. Examples of the same group are drawn into the same step."""

    ledger: dict[str, int]
    """Number of examples `in`, `out`, and left out for each reason; `in` is the sum of the rest."""

    def __len__(self) -> int:
        return len(self.example)

    @cached_property
    def mismatched(self) -> np.ndarray:
        """(sum K,) bool, whether the response was written for another example."""
        return self.response_row != np.repeat(self.example, self.response_count)

    @cached_property
    def response_count(self) -> np.ndarray:
        """(N,) int64, K of each example."""
        return np.diff(self.response_start)

    @cached_property
    def targets(self) -> np.ndarray:
        """(N,) int64, predicted tokens of all used responses."""
        return np.add.reduceat(self.target_count, self.response_start[:-1])


def select_best(
    columns: Columns, *, split: str | None, context: int, group_by: GroupBy = "example"
) -> Selection:
    """For SFT: of each example, the highest-scored response that is not marked undesirable.

    An example's share of the denominator is its weight times its target tokens.

    Args:
        split: Name of the split. None selects from all splits.
        context: Context of the model, in tokens. Longer examples are left out, and counted by
            the tier that holds most of their tokens.

    Raises:
        PlanError: nothing is left.
    """
    owner = _owner(columns)
    score = np.where(np.isnan(columns.order_score), -np.inf, columns.order_score)
    allowed = columns.desirable != 0
    # Sorted by example, then allowed before refused, then score; lexsort keeps the first of equals.
    order = np.lexsort((-score, ~allowed, owner))
    best = order[columns.response_start[:-1]]
    used = np.zeros(len(owner), dtype=bool)
    used[best] = allowed[best]
    selection = _select(columns, used, "no_best_response", split, context, group_by)
    weight = columns.weight[selection.example] * selection.targets
    return replace(selection, loss_weight=weight)


def select_ranked(
    columns: Columns, *, split: str | None, context: int, group_by: GroupBy = "example"
) -> Selection:
    """For preference losses: all scored responses of each example with two different scores.

    An example's share of the denominator is its weight. Arguments and errors as `select_best`.
    """
    start = columns.response_start[:-1]
    low = np.fmin.reduceat(columns.order_score, start)
    high = np.fmax.reduceat(columns.order_score, start)
    ordered = np.repeat(low < high, columns.response_count)
    used = ordered & ~np.isnan(columns.order_score)
    selection = _select(columns, used, "no_order", split, context, group_by)
    return replace(selection, loss_weight=columns.weight[selection.example])


def select_labelled(
    columns: Columns, *, split: str | None, context: int, group_by: GroupBy = "example"
) -> Selection:
    """For KTO: all responses marked desirable or undesirable, then one mismatched response.

    The mismatched response is the first used response of the first example of a following
    conversation that fits the context behind this prompt. If none of the next 32 conversations has
    one, the example is left out and counted. An example's share of the denominator is its weight.
    Arguments as `select_best`.

    Raises:
        PlanError: no response is marked, or nothing is left.
    """
    used = columns.desirable != -1
    if not used.any():
        raise PlanError(
            "loss.name kto learns from single marked responses, and no response of the store is "
            "marked: give responses `desirable: true` or `false`, or take a loss of pairs"
        )
    selection = _select(columns, used, "no_label", split, context, group_by)
    selection = replace(selection, loss_weight=columns.weight[selection.example])
    return _add_mismatched(selection, columns.conversation[selection.example], context)


def subset(selection: Selection, count: int, seed: int) -> Selection:
    """A random sample of at most `count` examples, without replacement, in store order."""
    if count >= len(selection):
        return selection
    rng = np.random.default_rng(seed)
    return take(selection, np.sort(rng.choice(len(selection), count, replace=False)))


def take(selection: Selection, positions: np.ndarray) -> Selection:
    """The examples at these positions, in this order."""
    flat, start = ranges(selection.response_start, positions)
    not_drawn = selection.ledger.get("not_drawn", 0) + len(selection) - len(positions)
    return Selection(
        example=selection.example[positions],
        response_start=start,
        response=selection.response[flat],
        response_row=selection.response_row[flat],
        sequence_length=selection.sequence_length[flat],
        target_count=selection.target_count[flat],
        prompt_length=selection.prompt_length[positions],
        tokens=selection.tokens[positions],
        loss_weight=selection.loss_weight[positions],
        group=selection.group[positions],
        ledger=selection.ledger | {"out": len(positions), "not_drawn": not_drawn},
    )


def _add_mismatched(selection: Selection, conversation: np.ndarray, context: int) -> Selection:
    """Append to each example the first used response of another conversation."""
    source = _mismatched_source(selection, conversation, context)
    kept = np.flatnonzero(source >= 0)
    if not len(kept):
        raise PlanError(
            "loss.name kto measures its reference point on responses to other conversations, and "
            f"none of {len(selection)} examples has one that fits the context of {context} tokens; "
            "train on more than one conversation"
        )
    flat = selection.response_start[source[kept]]
    row, response = selection.example[source[kept]], selection.response[flat]
    length = selection.target_count[flat]
    left_out = {"out": len(kept), "no_mismatched_response": len(selection) - len(kept)}
    ledger = selection.ledger | left_out
    selection = take(selection, kept)
    last = selection.response_start[1:]
    sequence_length = selection.prompt_length + length
    return replace(
        selection,
        response_start=selection.response_start + np.arange(len(kept) + 1),
        response=np.insert(selection.response, last, response),
        response_row=np.insert(selection.response_row, last, row),
        sequence_length=np.insert(selection.sequence_length, last, sequence_length),
        target_count=np.insert(selection.target_count, last, length),
        tokens=selection.tokens + length,
        ledger=ledger,
    )


def _mismatched_source(selection: Selection, conversation: np.ndarray, context: int) -> np.ndarray:
    """(N,) position whose first response is added to each example; -1 if there is none."""
    count = len(selection)
    first_length = selection.target_count[selection.response_start[:-1]]
    source = np.full(count, -1)
    begins = np.flatnonzero(conversation != np.roll(conversation, 1))
    if not len(begins):
        return source
    missing = np.arange(count)
    number = np.searchsorted(begins, missing, side="right")
    for ahead in range(_CONVERSATIONS_TRIED):
        other = begins[(number[missing] + ahead) % len(begins)]
        fits = selection.prompt_length[missing] + first_length[other] <= context
        fits &= conversation[other] != conversation[missing]
        source[missing[fits]] = other[fits]
        missing = missing[~fits]
    return source


def _owner(columns: Columns) -> np.ndarray:
    """(sum K,) store row of each response."""
    return np.repeat(np.arange(len(columns.prompt_length)), columns.response_count)


def ranges(start: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ragged gather: the ranges `start[p]:start[p + 1]` of all positions, concatenated.

    Returns:
        The flat indices, and (len(positions) + 1,) where each position's indices begin in them.
    """
    counts = start[positions + 1] - start[positions]
    own_start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    flat = np.repeat(start[positions] - own_start[:-1], counts) + np.arange(own_start[-1])
    return flat, own_start


def _select(
    columns: Columns,
    used: np.ndarray,
    unusable: str,
    split: str | None,
    context: int,
    group_by: GroupBy,
) -> Selection:
    """The examples of a split that have a used response and fit the context, all of weight 1."""
    count, prompt_length = len(columns.prompt_length), columns.prompt_length
    response_length = np.where(used, columns.response_length, 0)
    start = columns.response_start[:-1]
    in_split = np.full(count, True) if split is None else columns.split == split
    usable = in_split & np.logical_or.reduceat(used, start)
    longest = prompt_length + np.maximum.reduceat(response_length, start)
    example = np.flatnonzero(usable & (longest <= context))
    ledger = {"in": int(in_split.sum()), "out": len(example)}
    ledger[unusable] = int((in_split & ~usable).sum())
    ledger |= _too_long_by_tier(columns, np.flatnonzero(usable & (longest > context)), longest)
    if not len(example):
        raise PlanError(f"no example of split {split!r} is left to train on: {ledger}")
    flat, _ = ranges(columns.response_start, example)
    flat = flat[used[flat]]
    owner = _owner(columns)[flat]
    response_start = np.searchsorted(owner, np.append(example, count))
    targets = response_length[flat]
    return Selection(
        example=example,
        response_start=response_start,
        response=flat - columns.response_start[owner],
        response_row=owner,
        sequence_length=prompt_length[owner] + targets,
        target_count=targets,
        prompt_length=prompt_length[example],
        tokens=prompt_length[example] + np.add.reduceat(targets, response_start[:-1]),
        loss_weight=np.ones(len(example)),
        group=_groups(columns, group_by)[example],
        ledger=ledger,
    )


def _groups(columns: Columns, group_by: GroupBy) -> np.ndarray:
    """(N,) group of each example of the store."""
    if group_by == "example":
        return np.arange(len(columns.prompt_length))
    if group_by == "conversation":
        return columns.conversation
    # All examples without a meta-prompt have the same hash, but share no tokens.
    without = columns.meta_prompt == NO_META_PROMPT
    return np.where(without, columns.conversation, columns.meta_prompt)


def _too_long_by_tier(columns: Columns, rows: np.ndarray, longest: np.ndarray) -> dict[str, int]:
    """For each tier, how many of these store rows have most of their tokens in it."""
    flat, start = ranges(columns.segment_start, rows)
    owner = np.repeat(np.arange(len(rows)), np.diff(start))
    tokens = np.zeros((len(rows), len(TIERS)), dtype=np.int64)
    np.add.at(tokens, (owner, columns.segment_tier[flat]), columns.segment_length[flat])
    tokens[:, TIERS.index("response")] += longest[rows] - columns.prompt_length[rows]
    largest = tokens.argmax(axis=1)
    return {f"too_long_{tier}": int((largest == i).sum()) for i, tier in enumerate(TIERS)}
