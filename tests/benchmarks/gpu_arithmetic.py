"""Operations and bytes that a step needs at least, and shares of what a device can do.

Numbers only: no tensor, no device. A multiplication with its addition counts as two operations.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

ADAM_BYTES_PER_PARAMETER = 28
"""float32: weight, gradient and two moments are read, weight and moments written."""

DATASHEET_BF16 = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
}
"""Dense bfloat16 operations a second, by NVIDIA's datasheets; the first name that fits counts."""


@dataclass(frozen=True)
class DecoderShape:
    """What a Llama-like decoder multiplies with."""

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    key_value_heads: int
    head_size: int
    vocabulary: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "DecoderShape":
        """From the keys of a transformers config."""
        heads = config["num_attention_heads"]
        return cls(
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            key_value_heads=config.get("num_key_value_heads") or heads,
            head_size=config.get("head_dim") or config["hidden_size"] // heads,
            vocabulary=config["vocab_size"],
        )

    @property
    def layer_weights(self) -> int:
        """Elements of a layer's matrices: queries and output, keys and values, a gated MLP."""
        attention = 2 * self.hidden_size * self.head_size * (self.heads + self.key_value_heads)
        return attention + 3 * self.hidden_size * self.intermediate_size

    def training_flops(self, *, tokens: int, seen: int, targets: int) -> int:
        """Forward and backward passes, without anything computed again.

        Every token takes the layers' matrices, every target the head. Each pair of a query and a
        key takes two products of a head's size in each head. The backward pass is two forwards.

        Args:
            tokens: Fed, without padding.
            seen: Pairs of a token and one that it sees, itself included, in one head of one layer.
            targets: Whose logits are needed.
        """
        matrices = self.layers * self.layer_weights * tokens
        attention = self.layers * self.heads * self.head_size * 2 * seen
        head = self.hidden_size * self.vocabulary * targets
        return 3 * 2 * (matrices + attention + head)


def seen_by(depths: np.ndarray) -> int:
    """Pairs of a token and one that it sees, by (tokens,) depths in their sequence or tree: a
    token at depth d sees those above it and itself, d + 1."""
    return int(depths.sum()) + len(depths)


def seen_in_sequences(lengths: np.ndarray) -> int:
    """`seen_by` of whole sequences, n (n + 1) / 2 each."""
    return int((lengths * (lengths + 1) // 2).sum())


def share_of_peak(flops: float, seconds: float, peak: float) -> float:
    """Model FLOPs utilisation: operations that were needed by those that there was time for."""
    return flops / seconds / peak


def copy_bandwidth(size_bytes: int, seconds: float) -> float:
    """Bytes a second of a copy, which reads and writes each of them."""
    return 2 * size_bytes / seconds


def adam_bandwidth(parameters: int, seconds: float) -> float:
    """Bytes a second of an AdamW step in float32, at the least that it must move."""
    return ADAM_BYTES_PER_PARAMETER * parameters / seconds


def datasheet_peak(device_name: str) -> float | None:
    """Dense bfloat16 operations a second; None where the table does not know the device."""
    for name, peak in DATASHEET_BF16.items():
        if all(word in device_name for word in name.split()):
            return peak
    return None
