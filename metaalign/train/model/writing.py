"""A trained model as a Hugging Face folder, from weights that come one at a time.

Knows no checkpoint, no data and no Ray.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig

from metaalign.config.sections import LoraConfig
from metaalign.errors import ModelError
from metaalign.template import Template
from metaalign.train.model.adapters import add_adapters, merge_adapters
from metaalign.train.model.loading import load_config_of

NamedWeights = Iterable[tuple[str, Tensor]]
"""Names of trained parameters as the policy has them, and float32 values."""

_POLICY_PREFIX = "model."
"""The policy holds the Hugging Face model under this name."""


def write_model(
    folder: Path,
    weights: NamedWeights,
    *,
    config_folder: Path,
    shapes: Mapping[str, list[int]],
    dtype: torch.dtype,
) -> None:
    """Write config and weights of a model that was trained in full.

    The model is held once, in `dtype`, beside one float32 tensor.

    Args:
        config_folder: A folder with the model's config.
        shapes: What `weights` will give.

    Raises:
        ModelError: the weights are not those of this config.
    """
    config = load_config_of(config_folder)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    expected = {f"{_POLICY_PREFIX}{name}": list(p.shape) for name, p in model.named_parameters()}
    if shapes != expected:
        raise ModelError(f"{config_folder}: the checkpoint's tensors are not those of its config")
    state = {name: value.to(dtype) for name, value in _hugging_face(weights)}
    model.save_pretrained(folder, state_dict=state)


def write_merged(
    folder: Path,
    weights: NamedWeights,
    *,
    initial: str,
    lora: LoraConfig,
    train_vocabulary: bool,
    seed: int,
    dtype: torch.dtype,
) -> None:
    """Write the model that adapters were trained on, with the trained ones merged into it.

    Args:
        initial: The folder of that model.
        train_vocabulary: Whether embeddings and head were trained too.
        seed: As for training, `model.seed`.

    Raises:
        CheckpointError: the weights are of other adapters.
    """
    model = AutoModelForCausalLM.from_pretrained(initial, dtype=dtype)
    tuner = add_adapters(model, lora, train_vocabulary=train_vocabulary, seed=seed)
    merge_adapters(tuner, _hugging_face(weights)).save_pretrained(folder)


def write_generation_config(folder: Path, template: Template) -> None:
    """Servers stop at the template's end token and pad with it."""
    GenerationConfig(
        bos_token_id=template.bos_id, eos_token_id=template.eos_id, pad_token_id=template.eos_id
    ).save_pretrained(folder)


def _hugging_face(weights: NamedWeights) -> NamedWeights:
    return ((name.removeprefix(_POLICY_PREFIX), value) for name, value in weights)
