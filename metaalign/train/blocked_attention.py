"""SDPA in blocks of queries: on a CPU, a packed row costs what its tokens see, not its square.

A dense mask makes SDPA compute every pair of a row. Here a block of queries meets only the keys
from the first that any of them sees to the last of the block, so that trees beside each other in a
row, and what comes after a token, cost nothing. The numbers are SDPA's own.

Dimensions: R = rows, A = attention heads, L = length of a row, D = size of a head.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

BLOCKED_SDPA = "blocked_sdpa"
"""The name that transformers knows it by."""

BLOCK_QUERIES = 128

_FIRST_KEYS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""Of each mask in use, the first key of every block: all layers ask for the same."""


def blocked_sdpa(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """What transformers' SDPA gives, by blocks where a mask of (R, 1, L, L) booleans is given.

    Args:
        query: (R, A, L, D), as are key and value but for the number of heads.

    Returns:
        (R, L, A, D), and no weights.
    """
    length = query.shape[2]
    if attention_mask is None or length <= BLOCK_QUERIES or query.device.type != "cpu":
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    parts = []
    first_keys = _FIRST_KEYS.get(attention_mask)
    if first_keys is None:
        first_keys = _FIRST_KEYS[attention_mask] = first_key_by_block(attention_mask)
    blocks = zip(
        query.split(BLOCK_QUERIES, 2),
        attention_mask.split(BLOCK_QUERIES, 2),
        first_keys,
        strict=True,
    )
    for number, (queries, mask, first) in enumerate(blocks):
        keys = slice(first, (number + 1) * BLOCK_QUERIES)
        seen = (key[:, :, keys], value[:, :, keys], mask[..., keys])
        parts.append(sdpa_attention_forward(module, queries, *seen, **settings)[0])
    return torch.cat(parts, dim=1), None


def first_key_by_block(mask: Tensor) -> list[int]:
    """For each block of queries, the first key that any of them sees in any row.

    Args:
        mask: (R, 1, L, L) bool.
    """
    seen = torch.stack([block.any(dim=2).any(dim=0)[0] for block in mask.split(BLOCK_QUERIES, 2)])
    return seen.int().argmax(dim=1).tolist()


AttentionInterface.register(BLOCKED_SDPA, blocked_sdpa)
AttentionMaskInterface.register(BLOCKED_SDPA, sdpa_mask)
