"""Attention masks of rows of prefix trees: dense for SDPA, blocks for FlexAttention.

Token q attends to token k exactly if k <= q < subtree_end[k]. Windows and chunks of local attention
are measured by depth in the tree, which equals the position in a single sequence. Uses only a
model's config.

Dimensions: R = rows, L = length of a row, B = blocks of 128 in a row.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig

from metaalign.errors import LayoutError, ModelError

BLOCK = 128
"""Side of a FlexAttention block; a row's length is a multiple of it on CUDA."""

Kernel = Literal["sdpa", "eager", "flex_attention"]
Mask = Tensor | BlockMask
MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Locality(NamedTuple):
    """How far a layer attends, in depths."""

    window: int | None = None
    """A token attends to this many depths, including its own. None has no window."""

    chunk: int | None = None
    """A token attends only within its own chunk of this many depths. None has no chunks."""


EVERYWHERE = Locality()


def supported_kernel(
    config: PretrainedConfig, attention: Literal["sdpa", "flex_attention"]
) -> Kernel:
    """The kernel to load a model with: eager if its class has no SDPA, as with Gemma-2.

    Raises:
        ModelError: the class does not support FlexAttention, or it is no causal language model.
    """
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(f"{config.model_type}: transformers has no causal language model of it")
    model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if attention == "flex_attention" and not model._supports_flex_attn:
        raise ModelError(
            f"{config.model_type}: its model cannot run FlexAttention; set model.attention to sdpa"
        )
    return "eager" if attention == "sdpa" and not model._supports_sdpa else attention


def attention_masks(
    config: PretrainedConfig,
    *,
    positions: Tensor,
    subtree_end: Tensor,
    kernel: Kernel,
    dtype: torch.dtype,
) -> Mask | dict[str, Mask]:
    """The mask in the form that the model's forward takes: one, or one per layer type.

    Args:
        positions: (R, L) depths.
        subtree_end: (R, L) index after the last token of each token's subtree.
        kernel: SDPA takes booleans; eager attention adds the mask to its scores.
        dtype: The model's dtype.

    Raises:
        LayoutError: a layer type does not follow a mask, so it cannot take trees.
    """

    def build(locality: Locality) -> Mask:
        if kernel == "flex_attention":
            return block_mask(subtree_end, positions, locality)
        seen = dense_mask(subtree_end, positions, locality)
        if kernel == "sdpa":
            return seen
        return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)

    localities = layer_localities(config)
    masks = {locality: build(locality) for locality in set(localities.values())}
    if set(localities) == {None}:
        return masks[localities[None]]
    return {str(layer_type): masks[locality] for layer_type, locality in localities.items()}


def layer_localities(config: PretrainedConfig) -> dict[str | None, Locality]:
    """The locality of each layer type. The only key is None if all layers take the same mask.

    Raises:
        LayoutError: a layer type does not follow a mask.
    """
    window = getattr(config, "sliding_window", None)
    known = {
        "full_attention": EVERYWHERE,
        "sliding_attention": Locality(window=window),
        "chunked_attention": Locality(chunk=getattr(config, "attention_chunk_size", None)),
    }
    layer_types = set(getattr(config, "layer_types", None) or [])
    unknown = sorted(layer_types - set(known))
    if unknown:
        raise LayoutError(
            f"{config.model_type}: layers of type {', '.join(map(repr, unknown))} do not follow an "
            "attention mask, so they cannot be fed as prefix trees"
        )
    if layer_types - {"full_attention"}:
        return {layer_type: known[layer_type] for layer_type in layer_types}
    if layer_types or not getattr(config, "use_sliding_window", True):
        window = None
    return {None: Locality(window=window)}


def mask_mod(subtree_end: Tensor, positions: Tensor, locality: Locality = EVERYWHERE) -> MaskMod:
    """The rule as a function (row, head, q, k) -> whether q attends to k, over indices of any
    shape."""

    def sees(row: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        del head
        allowed = (k <= q) & (q < subtree_end[row, k])
        if locality.window is not None:
            allowed = allowed & (positions[row, q] - positions[row, k] < locality.window)
        if locality.chunk is not None:
            same = positions[row, q] // locality.chunk == positions[row, k] // locality.chunk
            allowed = allowed & same
        return allowed

    return sees


def dense_mask(subtree_end: Tensor, positions: Tensor, locality: Locality = EVERYWHERE) -> Tensor:
    """(R, 1, L, L) bool: whether query token q, third index, attends to key token k, fourth."""
    rows, length = subtree_end.shape
    place = torch.arange(length, device=subtree_end.device)
    row = torch.arange(rows, device=subtree_end.device)[:, None, None, None]
    return mask_mod(subtree_end, positions, locality)(row, row, place[:, None], place[None, :])


def block_mask(
    subtree_end: Tensor, positions: Tensor, locality: Locality = EVERYWHERE
) -> BlockMask:
    """The mask in blocks, from the smallest and largest value in each: no (L, L) mask is built.

    A block is skipped if none of its queries can attend to any of its keys, and full if all
    certainly do. In every other block `mask_mod` decides.
    """
    rows, length = subtree_end.shape
    assert length % BLOCK == 0, f"FlexAttention needs rows of a multiple of {BLOCK}, got {length}"
    number = torch.arange(length // BLOCK, device=subtree_end.device)
    q, k = number[:, None], number[None, :]
    end = subtree_end.view(rows, -1, BLOCK)
    reached = end.amax(-1)[:, None, :] > q * BLOCK
    covered = end.amin(-1)[:, None, :] >= (q + 1) * BLOCK
    some = (k == q) | ((k < q) & reached)
    every = (k < q) & covered
    depth = positions.view(rows, -1, BLOCK)
    low, high = depth.amin(-1), depth.amax(-1)
    if locality.window is not None:
        some = some & (low[:, :, None] - high[:, None, :] < locality.window)
        every = every & (high[:, :, None] - low[:, None, :] < locality.window)
    if locality.chunk is not None:
        low, high = low // locality.chunk, high // locality.chunk
        some = some & (low[:, :, None] <= high[:, None, :]) & (low[:, None, :] <= high[:, :, None])
        every = (
            every & (high[:, :, None] == low[:, None, :]) & (low[:, :, None] == high[:, None, :])
        )
    return BlockMask.from_kv_blocks(
        *_ordered(some & ~every),
        *_ordered(every),
        BLOCK_SIZE=BLOCK,
        mask_mod=mask_mod(subtree_end, positions, locality),
        seq_lengths=(length, length),
    )


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """(R, 1, B) number of key blocks of each query block, and (R, 1, B, B) all key blocks, with
    these first."""
    order = torch.argsort(blocks.int(), dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32)[:, None], order.int()[:, None]
