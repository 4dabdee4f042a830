"""SDPA in blocks of queries, which on a CPU skips most pairs of tokens that the mask excludes.

With a dense mask, SDPA computes every pair of tokens of a row. Here a block of queries is computed
only with the keys that at least one of its queries attends to: other trees of the row, other
branches of a tree and later tokens take no time. The results are SDPA's own.

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
"""Its name in transformers' registry of attention functions."""

BLOCK_QUERIES = 128
"""Largest number of queries in a block. Rows that are not longer go to SDPA undivided."""

ROWS_APART = 512
"""Rows of at least this length have blocks of their own. Shorter rows share blocks, since one call
costs as much as some hundred more pairs of tokens."""

_WORTH_GATHERING = 0.75
"""If a block uses at most this share of the keys between its first and last one, the used keys are
copied together. Otherwise all keys between them are used, without a copy."""


class Block(NamedTuple):
    """Queries that are computed together, and their keys."""

    rows: slice
    queries: slice
    keys: slice | Tensor
    """A range, or (K,) indices."""
    bias: Tensor
    """(R or 1, 1, Q, K), 0 if the query attends to the key, else minus infinity."""

    def take(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The block's part of each tensor, (R or 1, A, Q or K, D)."""
        own = (self.rows, slice(None), self.keys)
        return query[self.rows, :, self.queries], key[own], value[own]


_BLOCKS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""The blocks of each mask in use, since all layers share them."""


def blocked_sdpa(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """The output of transformers' SDPA, computed in blocks if the mask is (R, 1, L, L) booleans.

    Args:
        query: (R, A, L, D). key and value may have fewer heads.

    Returns:
        (R, L, A, D), and None instead of the attention weights.
    """
    if attention_mask is None or not _fits(query, value, attention_mask):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **settings
        )
    assert not settings.get("dropout"), "sequences that share a token would share its dropout"
    blocks = _BLOCKS.get(attention_mask)
    if blocks is None:
        blocks = _BLOCKS[attention_mask] = list(find_blocks(attention_mask, query.dtype))
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    output: Any = _Blocked.apply(query, key, value, blocks, scale)
    return output.transpose(1, 2), None


def _fits(query: Tensor, value: Tensor, mask: Tensor) -> bool:
    """Whether the inputs can be computed in blocks. Doge passes a mask that is added to the scores,
    which cannot."""
    on_cpu = query.device.type == "cpu" and query.shape[-1] == value.shape[-1]
    long = query.shape[2] > BLOCK_QUERIES
    return on_cpu and long and mask.dtype == torch.bool and mask.shape[1] == 1


class _Blocked(torch.autograd.Function):
    """SDPA's kernel and its gradient, block by block.

    Autograd would make a tensor of the whole size, filled with zeros, for the gradient of each
    block's slice. Here the blocks' gradients of a key are added in place.
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
    """Yield blocks that contain every query exactly once.

    Args:
        mask: (R, 1, L, L) bool. Every query attends to itself.
        dtype: The dtype of the bias.
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
    """Yield the begin and end of each block of queries: several whole trees, or an equal part of a
    long tree.

    Args:
        seen: (L, L) bool: whether a query attends to a key.
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
