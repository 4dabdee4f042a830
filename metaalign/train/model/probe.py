"""Which layout an architecture can be fed with, found before any worker starts.

transformers does not say when a mask is not obeyed, so a tiny copy of the model, every layer type
in it and windows shorter than the test, is fed with rows and compared with `model.forward` on one
sequence after the other. Knows no data and no weights.
"""

import copy
import logging
from typing import Literal

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers import logging as transformers_logging

from metaalign.errors import LayoutError, ModelError
from metaalign.steps.plan import Layout
from metaalign.steps.trees import Rows, Sequence, lay_out_rows
from metaalign.train.model.attention import Kernel, supported_kernel
from metaalign.train.model.loading import switch_off_dropout
from metaalign.train.model.policy import Policy, after_head, decoder_of, head_of, to_tensors

TOLERANCE = 1e-4
"""Largest difference of a log-probability, in nats. A mask that is not obeyed costs far more."""

WINDOW = 5
"""Windows and chunks of the tiny copy, in tokens; the test's sequences are longer."""

VOCABULARY = 64

_FEEDING_ERRORS = (
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

logger = logging.getLogger(__name__)


def choose_layout(
    config: PretrainedConfig,
    layout: Literal["auto", "tree", "single"],
    attention: Literal["sdpa", "flex_attention"] = "sdpa",
) -> Layout:
    """The layout to train with: trees where they are exact and allowed, else one sequence a row.

    Raises:
        LayoutError: the layout that was asked for, or any, is not exact; names the layer type.
        ModelError: the kernel is not supported, or what follows the head is not known.
    """
    text_config = config.get_text_config()
    supported_kernel(text_config, attention)
    model = _tiny_model(text_config)
    if layout != "single":
        refusal = _refusal(model, "tree")
        if refusal is None:
            return "tree"
        _check_head(model)
        if layout == "tree":
            raise LayoutError(f"{refusal}; set model.layout to auto or single")
        logger.warning("%s; taking one sequence a row", refusal)
    refusal = _refusal(model, "single")
    if refusal is not None:
        _check_head(model)
        raise LayoutError(f"{refusal}; no layout feeds this model, so take another")
    return "single"


def tiny_copy(config: PretrainedConfig) -> PretrainedConfig:
    """The architecture at a width of 64, with one layer of each kind, two at least."""
    tiny = copy.deepcopy(config)
    count = config.num_hidden_layers
    by_layer = {
        name: list(values)
        for name, values in vars(config).items()
        if isinstance(values, list | tuple) and len(values) == count
    }
    numbers = [name for name, values in by_layer.items() if values == list(range(count))]
    kinds = zip(*(by_layer[name] for name in by_layer if name not in numbers), strict=True)
    first = {str(kind): layer for layer, kind in reversed(list(enumerate(kinds)))}
    layers = sorted(first.values()) if len(first) > 1 else list(range(min(2, count)))
    for name, values in by_layer.items():
        kept = [values[layer] for layer in layers]
        setattr(tiny, name, list(range(len(layers))) if name in numbers else kept)
    heads = getattr(config, "num_attention_heads", 1)
    groups = getattr(config, "num_key_value_heads", None)
    sizes = {**_SIZES, "num_hidden_layers": len(layers)}
    if hasattr(config, "qk_rope_head_dim"):
        sizes["head_dim"] = sizes["qk_rope_head_dim"]
    sizes["num_key_value_heads"] = 2 if groups and 1 < groups < heads else 1 if groups == 1 else 4
    for name, size in sizes.items():
        fixed = isinstance(getattr(type(config), name, None), property)
        if isinstance(getattr(config, name, None), int) and not fixed:
            setattr(tiny, name, size)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(tiny, name, None)
    rope = getattr(tiny, "rope_parameters", None) or {}
    size = getattr(config, "head_dim", None) or getattr(config, "hidden_size", 1) // heads
    for name in {"short_factor", "long_factor"} & set(rope):  # one number a rotated pair
        rope[name] = rope[name][: len(rope[name]) * _SIZES["head_dim"] // size]
    return tiny


_SIZES = {
    "hidden_size": 64,
    "word_embed_proj_dim": 64,
    "intermediate_size": 96,
    "intermediate_size_mlp": 96,
    "ffn_dim": 96,
    "vocab_size": VOCABULARY,
    "vocab_size_per_layer_input": VOCABULARY,
    "num_attention_heads": 4,
    "head_dim": 16,
    "global_head_dim": 16,
    "rotary_dim": 8,
    "lru_width": 64,
    "sliding_window": WINDOW,
    "attention_chunk_size": WINDOW,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "mamba_d_ssm": 64,
    "mamba_d_state": 16,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_expand": 1,
    "mamba_chunk_size": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
"""Settings of the tiny copy, where the architecture has them as numbers."""


def _tiny_model(config: PretrainedConfig) -> PreTrainedModel:
    """Random weights of the size that trained ones have, so that a wrong mask shows.

    Float64, or float32 where that is all the model's kernels take (mixtures of experts).

    Raises:
        ModelError: the tiny copy cannot be built or run.
    """
    kernel = supported_kernel(config, "sdpa")
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with torch.random.fork_rng(devices=[]):
            tiny = tiny_copy(config)
            switch_off_dropout(tiny)
            return _draw_model(tiny, kernel)
    except _FEEDING_ERRORS as error:
        raise ModelError(
            f"{config.model_type}: a tiny copy of the model, on which layouts are tried before"
            f" training, does not run: {type(error).__name__}: {error}"
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)


@torch.no_grad()
def _draw_model(config: PretrainedConfig, kernel: Kernel) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation=kernel, dtype=torch.float32
    ).train()  # as it trains: a router that draws noise must show
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.normal_(std=weight.shape[-1] ** -0.5)
    tokens = torch.arange(2 * WINDOW)[None]
    try:
        model.double()(input_ids=tokens, use_cache=False)
    except RuntimeError:
        model.float()(input_ids=tokens, use_cache=False)
    return model


@torch.no_grad()
def _refusal(model: PreTrainedModel, layout: Layout) -> str | None:
    """Why a layout does not feed this model, or None where it does."""
    how = "prefix trees" if layout == "tree" else "one sequence a row"
    who = f"{model.config.model_type}: layers of type {_layer_types(model)} cannot be fed as {how}"
    kernel = supported_kernel(model.config, "sdpa")
    policy = Policy(model, attention=kernel, layout=layout, chunk_targets=VOCABULARY)
    rows, sequences = probe_rows(layout)
    try:
        logprobs = policy(to_tensors(rows))
    except LayoutError as error:
        return str(error)
    except _FEEDING_ERRORS as error:
        return f"{who}: {type(error).__name__}: {error}"
    plain = torch.cat([_plain_logprobs(model, sequence) for sequence in sequences])
    error = float((logprobs - plain).abs().max())
    if error <= TOLERANCE:
        return None
    return f"{who}: a log-probability is {error:.2g} nats off"


def _plain_logprobs(model: PreTrainedModel, sequence: Sequence) -> Tensor:
    """(targets,) of one sequence alone, through the model's own forward."""
    tokens = torch.from_numpy(sequence.tokens)[None]
    logits: Tensor = model(input_ids=tokens, use_cache=False).logits
    logprobs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)[0]
    target = tokens[0, sequence.prompt_length :, None]
    return logprobs[sequence.prompt_length - 1 : -1].gather(1, target)[:, 0]


@torch.no_grad()
def _check_head(model: PreTrainedModel) -> None:
    """Refuse a model whose logits are not the head's, scaled or capped as the table says."""
    tokens = torch.arange(2 * WINDOW)[None]
    try:
        hidden = decoder_of(model)(input_ids=tokens, use_cache=False).last_hidden_state
        logits = after_head(model.config)(head_of(model)(hidden))
    except _FEEDING_ERRORS:
        return  # the refusal that led here says what does not run
    error = float((logits - model(input_ids=tokens, use_cache=False).logits).abs().max())
    if not error <= TOLERANCE:
        raise ModelError(
            f"{model.config.model_type}: the model changes its logits after the head in a way that"
            " metaalign does not know; add it to the table in metaalign/train/model/policy.py"
        )


def _layer_types(model: PreTrainedModel) -> str:
    """Names of the kinds of layers: the config's, or the classes of the decoder's layers."""
    names = set(getattr(model.config, "layer_types", None) or [])
    if not names:
        stacks = [each for each in decoder_of(model).children() if isinstance(each, nn.ModuleList)]
        names = {type(layer).__name__ for stack in stacks for layer in stack}
    return ", ".join(map(repr, sorted(names)))


def probe_rows(layout: Layout) -> tuple[Rows, list[Sequence]]:
    """Three examples of two responses each, two of them with one meta-prompt in one row.

    Sequences have 16 to 20 tokens, more than three windows.
    """
    rng = np.random.default_rng(0)
    meta_prompt = rng.integers(0, VOCABULARY, 8)
    sequences: list[Sequence] = []
    for example in range(3):
        prompt = np.append(meta_prompt, rng.integers(0, VOCABULARY, 4 + example))
        for response in range(2):
            tokens = np.append(prompt, rng.integers(0, VOCABULARY, 4 + 2 * response))
            row = example // 2 if layout == "tree" else len(sequences)
            sequences.append(Sequence(tokens, len(prompt), row))
    targets = sum(len(sequence.tokens) - sequence.prompt_length for sequence in sequences)
    rows = lay_out_rows(sequences, num_rows=sequences[-1].row + 1, num_targets=targets, length=64)
    return rows, sequences
