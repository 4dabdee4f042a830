"""A small model of an architecture with random weights, and whether a causal model it is at all.

Knows no rows and no layout.
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
"""Of a copy that keeps the model's widths, where one with other widths does not run."""

TOLERANCE = 1e-4
"""Largest difference of a logit that rounding makes."""

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
"""What a model's code raises on input or sizes that it was not written for."""


class Copies(NamedTuple):
    """One small model twice: as a run feeds it, and as its own reference."""

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
    """The same random weights in a model with the kernel that trains, and in one with SDPA.

    Args:
        dtype: Of the first. None is float64, or float32 where that is all the model's code takes;
            the second is as exact as that.

    Raises:
        ModelError: transformers' own code does not run with this config.
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
    """Random weights of the size that trained ones have, so that a wrong mask shows."""
    model = _built(tiny, supported_kernel(tiny, "sdpa"), torch.float32)
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.normal_(std=weight.shape[-1] ** -0.5)
        else:
            weight.add_(torch.randn_like(weight), alpha=0.1)
    return model


def _built(tiny: Any, kernel: Kernel, dtype: torch.dtype) -> PreTrainedModel:
    own = copy.deepcopy(tiny)  # the kernel is written into it
    switch_off_noise(own)
    model = AutoModelForCausalLM.from_config(own, attn_implementation=kernel, dtype=dtype)
    return model.train()  # as it trains: a router that draws noise must show


@torch.no_grad()
def _runnable(model: PreTrainedModel) -> PreTrainedModel:
    """In float64, or float32 where that is all that the model's kernels take."""
    try:
        _logits(model.double(), _tokens(model))
    except RuntimeError:
        _logits(model.float(), _tokens(model))
    return model


def _count(config: Any) -> int:
    """Parameters of a model that is not built."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).num_parameters()


def _tokens(model: PreTrainedModel) -> Tensor:
    return torch.arange(VOCABULARY // 2, device=model.device)[None]


def _logits(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    return model(input_ids=tokens, use_cache=False).logits


@torch.no_grad()
def check_feedable(model: PreTrainedModel) -> None:
    """Refuse what no layout could feed.

    Raises:
        ModelError: the model draws noise, sees what comes later, or does to its logits what
            metaalign does not know.
    """
    tokens, name = _tokens(model), model.config.model_type
    try:
        logits = _logits(model, tokens)
        again = _logits(model, tokens)
        changed = _logits(model, torch.cat([tokens[:, :-1], tokens[:, :1]], 1))
        hidden = decoder_of(model)(input_ids=tokens, use_cache=False).last_hidden_state
        known = after_head(model.config)(head_of(model)(hidden))
    except FEEDING_ERRORS:
        return  # the refusal that led here says what does not run
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
