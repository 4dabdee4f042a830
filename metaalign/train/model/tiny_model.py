"""Builds a small model of an architecture with random weights, and checks that it is causal.

Imports neither rows nor layouts.
"""

import copy
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers import logging as transformers_logging

from metaalign.errors import ModelError
from metaalign.train.model.attention import Kernel, supported_kernel
from metaalign.train.model.loading import switch_off_noise
from metaalign.train.model.policy import after_head, decoder_of, head_of
from metaalign.train.model.tiny_copy import VOCABULARY, Reach, tiny_copy

MOST_PARAMETERS = 100_000_000
"""Largest size of a copy that keeps the model's widths, made if one with small widths fails."""

TOLERANCE = 1e-4
"""Largest difference of a logit that counts as rounding."""

FEEDING_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
)
"""Errors that a model's code raises for inputs or sizes that it does not support."""


class Copies(NamedTuple):
    """Two models with the same weights: the one that gets rows, and its reference."""

    fed: PreTrainedModel
    reference: PreTrainedModel


def draw_copies(
    config: PretrainedConfig,
    reach: Reach,
    kernel: Kernel,
    *,
    device: torch.device,
    dtype: torch.dtype | None,
) -> Copies:
    """A model with the kernel that trains and one with SDPA, with the same random weights.

    Args:
        dtype: The dtype of the first. None is float64, or float32 if the model's code does not
            support float64; the second then has the same.

    Raises:
        ModelError: transformers' own code fails with this config.
    """
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return _draw(config, reach, kernel, device, dtype)
    except FEEDING_ERRORS as error:
        raise ModelError(
            f"{config.model_type}: a tiny copy of the model, on which layouts are tried before"
            " training, does not run in transformers; its config may lack a setting: "
            f"{type(error).__name__}: {error}"
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)


def _draw(
    config: PretrainedConfig,
    reach: Reach,
    kernel: Kernel,
    device: torch.device,
    dtype: torch.dtype | None,
) -> Copies:
    try:
        tiny = tiny_copy(config, reach)
        reference = _runnable(_reference(tiny))
    except FEEDING_ERRORS as error:
        tiny = tiny_copy(config, reach, keep_widths=True)
        if _count(tiny) > MOST_PARAMETERS:
            raise error
        reference = _runnable(_reference(tiny))
    fed = _built(tiny, kernel, dtype or reference.dtype)
    fed.load_state_dict(reference.state_dict())
    if dtype is not None:
        reference = reference.float()
        reference.load_state_dict(fed.state_dict())
    return Copies(fed.to(device), reference.to(device))  # pyright: ignore[reportArgumentType]


@torch.no_grad()
def _reference(tiny: Any) -> PreTrainedModel:
    """A model with random weights as large as trained ones, so that a wrong mask has an effect."""
    model = _built(tiny, supported_kernel(tiny, "sdpa"), torch.float32)
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.normal_(std=weight.shape[-1] ** -0.5)
        else:
            weight.add_(torch.randn_like(weight), alpha=0.1)
    return model


def _built(tiny: Any, kernel: Kernel, dtype: torch.dtype) -> PreTrainedModel:
    own = copy.deepcopy(tiny)  # transformers writes the kernel into it
    switch_off_noise(own)
    model = AutoModelForCausalLM.from_config(own, attn_implementation=kernel, dtype=dtype)
    return model.train()  # as in training, so that a router's noise has an effect


@torch.no_grad()
def _runnable(model: PreTrainedModel) -> PreTrainedModel:
    """The model in float64, or in float32 if its kernels do not support float64."""
    try:
        _logits(model.double(), _tokens(model))
    except RuntimeError:
        _logits(model.float(), _tokens(model))
    return model


def _count(config: Any) -> int:
    """Number of parameters of a model, without allocating it."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).num_parameters()


def _tokens(model: PreTrainedModel) -> Tensor:
    return torch.arange(VOCABULARY // 2, device=model.device)[None]


def _logits(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    return model(input_ids=tokens, use_cache=False).logits


@torch.no_grad()
def check_feedable(model: PreTrainedModel) -> None:
    """Refuse a model that no layout supports.

    Raises:
        ModelError: the model draws noise, attends to later tokens, or changes its logits in a way
            that `after_head` does not implement.
    """
    tokens, name = _tokens(model), model.config.model_type
    try:
        logits = _logits(model, tokens)
        again = _logits(model, tokens)
        changed = _logits(model, torch.cat([tokens[:, :-1], tokens[:, :1]], 1))
        hidden = decoder_of(model)(input_ids=tokens, use_cache=False).last_hidden_state
        known = after_head(model.config)(head_of(model)(hidden))
    except FEEDING_ERRORS:
        return  # the caller reports what fails
    if not _close(again, logits):
        raise ModelError(
            f"{name}: the model draws noise while it trains (its router, as a rule), so a token "
            "that sequences share would get one draw for all; such models are not supported"
        )
    encodes = getattr(model.config, "is_decoder", None) is False
    if encodes and not _close(changed[:, :-1], logits[:, :-1]):
        raise ModelError(
            f"{name}: a token sees those after it, so this is no causal language model; set "
            "is_decoder to true in its config.json"
        )
    if not _close(known, logits):
        raise ModelError(
            f"{name}: the model changes its logits after the head, or the hidden states before it, "
            "in a way that metaalign does not know; add it to the table in "
            "metaalign/train/model/policy.py"
        )


def _close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and float((one - other).abs().max()) <= TOLERANCE
