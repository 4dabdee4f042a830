"""SDPA in blocks of queries: on a CPU, a packed row costs what its tokens see, not its square.

A dense mask makes SDPA compute every pair of a row. Here a block of queries meets the keys that
some query of it sees, and no other: trees beside each other in a row, branches beside each other
in a tree, and what comes after a token cost nothing. The numbers are SDPA's own.

Dimensions: R = rows, A = attention heads, L = length of a row, D = size of a head, Q = queries of
a block, K = keys of a block.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

BLOCKED_SDPA = "blocked_sdpa"
"""The name that transformers knows it by."""

BLOCK_QUERIES = 128
"""Queries of a block at most. Rows that are no longer are left to SDPA as they are."""

ROWS_APART = 512
"""From this length on every row has blocks of its own; shorter rows share theirs, since a call
costs as much as some hundred pairs of tokens more."""

_WORTH_GATHERING = 0.75
"""Up to this share of the keys between the first and the last that are seen, those are copied
together; above it, all between them are taken as they lie."""


class Block(NamedTuple):
    """Queries that are computed together, and the keys that they meet."""

    rows: slice
    queries: slice
    keys: slice | Tensor
    """A range, or (K,) places."""
    bias: Tensor
    """(R or 1, 1, Q, K), 0 where a query sees a key, and minus infinity."""

    def take(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Its part of each, (R or 1, A, Q or K, D)."""
        own = (self.rows, slice(None), self.keys)
        return query[self.rows, :, self.queries], key[own], value[own]


_BLOCKS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""Of each mask in use: all layers ask for the same."""


def blocked_sdpa(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """What transformers' SDPA gives, by blocks where a mask of (R, 1, L, L) booleans is given.

    Args:
        query: (R, A, L, D), as are key and value but for the number of heads.

    Returns:
        (R, L, A, D), and no weights.
    """
    if attention_mask is None or not _fits(query, value, attention_mask):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **settings
        )
    assert not settings.get("dropout"), "a shared token cannot be dropped out twice"
    blocks = _BLOCKS.get(attention_mask)
    if blocks is None:
        blocks = _BLOCKS[attention_mask] = list(find_blocks(attention_mask, query.dtype))
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    output: Any = _Blocked.apply(query, key, value, blocks, scale)
    return output.transpose(1, 2), None


def _fits(query: Tensor, value: Tensor, mask: Tensor) -> bool:
    """Whether there is what blocks can leave out. Doge hands in what it adds to the scores."""
    on_cpu = query.device.type == "cpu" and query.shape[-1] == value.shape[-1]
    long = query.shape[2] > BLOCK_QUERIES
    return on_cpu and long and mask.dtype == torch.bool and mask.shape[1] == 1


class _Blocked(torch.autograd.Function):
    """SDPA's own kernel and its gradient, block by block.

    Called directly, since the gradient of a slice would fill a tensor of the whole size with zeros
    for each block: here the blocks' shares of a key's gradient are added in place.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, blocks: list[Block], scale: float
    ) -> Tensor:
        output = torch.empty_like(query)
        log_sums = []
        for block in blocks:
            inputs = block.take(query, key, value)
            part, log_sum = _attend(*inputs, 0.0, False, attn_mask=block.bias, scale=scale)
            output[block.rows, :, block.queries] = part
            log_sums.append(log_sum)
        ctx.save_for_backward(query, key, value, output, *log_sums)
        ctx.blocks, ctx.scale = blocks, scale
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, *log_sums = ctx.saved_tensors
        of_query, of_key, of_value = (torch.zeros_like(each) for each in (query, key, value))
        for block, log_sum in zip(ctx.blocks, log_sums, strict=True):
            own = (block.rows, slice(None), block.queries)
            inputs = block.take(query, key, value)
            shares = _attend_backward(
                gradients[0][own], *inputs, output[own], log_sum, 0.0, False,
                attn_mask=block.bias, scale=ctx.scale,
            )  # fmt: skip
            of_query[own] = shares[0]
            for total, share in ((of_key, shares[1]), (of_value, shares[2])):
                if isinstance(block.keys, slice):
                    total[block.rows, :, block.keys] += share
                else:
                    total[block.rows].index_add_(2, block.keys, share)
        return of_query, of_key, of_value, None, None


_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_attend_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def find_blocks(mask: Tensor, dtype: torch.dtype) -> Iterator[Block]:
    """Blocks that hold every query once.

    Args:
        mask: (R, 1, L, L) bool; every query sees itself.
        dtype: Of the bias.
    """
    rows, length = mask.shape[0], mask.shape[2]
    lanes = [slice(row, row + 1) for row in range(rows)]
    if length < ROWS_APART:
        lanes = [slice(0, rows)]
    for lane in lanes:
        seen = mask[lane].any(0)[0]
        for begin, end in _spans(seen):
            used = seen[begin:end].any(0).nonzero()[:, 0]
            first, past = int(used[0]), int(used[-1]) + 1
            keys: slice | Tensor = slice(first, past)
            if len(used) <= _WORTH_GATHERING * (past - first):
                keys = used
            visible = mask[lane, :, begin:end][..., keys]
            bias = torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, float("-inf"))
            yield Block(lane, slice(begin, end), keys, bias)


def _spans(seen: Tensor) -> Iterator[tuple[int, int]]:
    """Where blocks of queries begin and end: whole trees together, or a long tree in even parts.

    Args:
        seen: (L, L) bool, whether a query sees a key.
    """
    length = len(seen)
    root = seen.int().argmax(1) == torch.arange(length)
    trees = [*root.nonzero()[:, 0].tolist(), length]
    begin = 0
    for tree, past in pairwise(trees):
        if past - begin <= BLOCK_QUERIES:
            continue
        if tree > begin:
            yield begin, tree
        parts = -(-(past - tree) // BLOCK_QUERIES)
        ends = [tree + (past - tree) * part // parts for part in range(parts + 1)]
        yield from pairwise(ends[:-1])
        begin = ends[-2]
    if begin < length:
        yield begin, length


AttentionInterface.register(BLOCKED_SDPA, blocked_sdpa)
AttentionMaskInterface.register(BLOCKED_SDPA, sdpa_mask)
