"""Writes a trained model as a Hugging Face folder, from weights that arrive one at a time.

Imports no checkpoint, data or Ray.
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
"""Names of trained parameters in the policy, and their float32 values."""

_POLICY_PREFIX = "model."
"""Prefix of the Hugging Face model's parameters in the policy."""


def write_model(
    folder: Path,
    weights: NamedWeights,
    *,
    config_folder: Path,
    shapes: Mapping[str, list[int]],
    dtype: torch.dtype,
) -> None:
    """Write config and weights of a model that was trained in full.

    Memory holds the model once, in `dtype`, and one float32 tensor.

    Args:
        config_folder: Folder with the model's config.
        shapes: Shapes of `weights`, by name.

    Raises:
        ModelError: the shapes are not those of the config.
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
    """Write the initial model with the trained adapters merged into it.

    Args:
        initial: Folder of the initial model.
        train_vocabulary: Whether embeddings and head were trained too.
        seed: `model.seed` of the training run.

    Raises:
        CheckpointError: the weights belong to other adapters.
    """
    model = AutoModelForCausalLM.from_pretrained(initial, dtype=dtype)
    tuner = add_adapters(model, lora, train_vocabulary=train_vocabulary, seed=seed)
    merge_adapters(tuner, _hugging_face(weights)).save_pretrained(folder)


def write_generation_config(folder: Path, template: Template) -> None:
    """Write a generation config: servers stop at the template's end token and pad with it."""
    GenerationConfig(
        bos_token_id=template.bos_id, eos_token_id=template.eos_id, pad_token_id=template.eos_id
    ).save_pretrained(folder)


def _hugging_face(weights: NamedWeights) -> NamedWeights:
    return ((name.removeprefix(_POLICY_PREFIX), value) for name, value in weights)
