"""Reads from messages which answers of a conversation are trained, and with which weight.

OpenAI            {"role": "assistant", "content": "Hello!", "weight": 0}
ms-swift          {"role": "assistant", "content": "Hello!", "loss": false}
LLaMA-Factory v1  {"role": "assistant", "content": "Hello!", "loss_weight": 0.0}
axolotl           {"role": "assistant", "content": "Hello!", "train": false}, or training
verl              {"role": "assistant", "content": "Hello!", "loss_mask": 0}, or trainable
"""

from collections.abc import Mapping
from typing import Any

from metaalign.data.formats.fields import as_number, is_filled, short
from metaalign.errors import RowError

_SWITCHES = ("train", "training", "trainable", "train_on_turn")
_FACTORS = ("weight", "loss", "loss_weight", "loss_mask")
_UNCLEAR = {
    "mask": "may keep an answer or leave it out",
    "train_detail": "trains parts of an answer",
    "training_detail": "trains parts of an answer",
}
LOSS_FLAGS = frozenset({*_SWITCHES, *_FACTORS, *_UNCLEAR})
"""Keys of a message that set whether it is trained."""


def loss_weight(message: Mapping[str, Any], key: str) -> float:
    """The weight of an answer: 0 if it is not trained, 1 if it has no flag.

    Args:
        key: Key of the messages in the row, for errors.

    Raises:
        RowError: the value of a flag is not valid or not supported.
    """
    if LOSS_FLAGS.isdisjoint(message):
        return 1.0
    for name, why in _UNCLEAR.items():
        if is_filled(message.get(name)):
            raise RowError(f"{key}: {name} {why}; say train: true or false of the whole message")
    weight = 1.0
    for name in (*_SWITCHES, *_FACTORS):
        value = message.get(name)
        if value is not None:
            weight *= _factor(value, f"{key}: {name}", is_switch=name in _SWITCHES)
    return weight


def _factor(value: Any, name: str, *, is_switch: bool) -> float:
    if isinstance(value, bool):
        return float(value)
    if is_switch and value not in (0, 1, "0", "1"):
        raise RowError(f"{name} must be true, false or null, got {short(value)}")
    factor = as_number(value, name)
    if factor < 0:
        raise RowError(f"{name} must not be negative, got {short(value)}")
    return factor
