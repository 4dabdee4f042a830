"""Adds peft's low-rank adapters to a model, and merges them into its weights on export.

Imports no engine, data or Ray. The base weights stay frozen in the initial model's folder;
checkpoints contain only the trained tensors.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from metaalign.config.sections import LoraConfig
from metaalign.errors import CheckpointError, ModelError
from metaalign.train.model.vocabulary import vocabulary_modules


def add_adapters(model: Any, config: LoraConfig, *, train_vocabulary: bool, seed: int) -> Any:
    """Freeze the model and add adapters to its projections, in place. Returns peft's tuner.

    The adapters start as an update of zero, so the model's output does not change.

    Args:
        train_vocabulary: Train the embeddings and the head in full. Frozen ones would never learn
            control tokens that are new to the model.
        seed: Seed of the adapters' random weights, the same on every worker.

    Raises:
        ModelError: the model has no module that matches a name of `target_modules`.
    """
    import peft  # only a run with adapters needs it

    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=_targets(config),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    dtype = model.dtype
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            tuner = peft.LoraModel(model, settings, "default")
        except ValueError as error:
            raise ModelError(f"model.lora.target_modules: {error}") from error
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    # DeepSpeed gathers a layer for its backward pass by a hook on the gradient of its input.
    model.enable_input_require_grads()
    if train_vocabulary:
        for module in vocabulary_modules(model):
            module.weight.requires_grad_(True)
    return tuner


def merge_adapters(tuner: Any, trained: Iterable[tuple[str, Tensor]]) -> Any:
    """Load the trained values and merge the adapters into the model's weights.

    Args:
        trained: Names in the model with adapters, and values, one at a time.

    Raises:
        CheckpointError: the values belong to other adapters.
    """
    left = {name: p for name, p in tuner.model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, value in trained:
            if name not in left:
                raise CheckpointError(f"{name!r} is no trained tensor of these adapters")
            left.pop(name).copy_(value)
    if left:
        raise CheckpointError(f"the checkpoint has no {next(iter(left))!r}, which was trained")
    return tuner.merge_and_unload()


def _targets(config: LoraConfig) -> str | list[str]:
    targets = config.target_modules
    return targets if isinstance(targets, str) else list(targets)
