"""Makes a small copy of an architecture's config: few layers, small widths and short lengths.

The probe's short sequences and rows cross a window, chunk or position limit of the copy exactly if
the run's cross that of the model. Uses neither weights nor data.
"""

import copy
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from transformers import PretrainedConfig

from metaalign.steps.plan import Layout

WINDOW = 5
"""Replaces a length that sequences of the run exceed. The shortest test sequences are shorter."""

LONGEST_SEQUENCE = 45
"""Number of tokens in the test's longest sequence."""

LONGEST_ROW = 512
"""Number of tokens in the test's longest row of trees."""

VOCABULARY = 64

_LENGTH = re.compile(
    "position|window|chunk|seq_len|context_length|model_max_length|n_ctx|floor|extent|distance"
    "|block_size|mem_len|clamp_len|index_topk$|local_attention$"
)
"""Names of config numbers that may be compared with a position in a row or in a sequence."""

_NO_LENGTH = re.compile("^num_|layers|pattern|buckets|chunks_|chunk_size_(feed_forward|lm_head)")


class Reach(NamedTuple):
    """The longest sequence and row of a run, for comparison with the lengths in a config."""

    sequence: float
    """Number of tokens in its longest sequence."""
    row: float
    """Number of tokens in its longest row."""
    layout: Layout

    def shorten(self, number: int) -> int:
        """A config length for the test, which crosses it exactly if the run crosses `number`."""
        if number < self.sequence:
            return min(number, WINDOW)
        if number < self.row or self.layout == "single":
            return LONGEST_SEQUENCE
        return LONGEST_ROW


def tiny_copy(config: PretrainedConfig, reach: Reach, *, keep_widths: bool = False) -> Any:
    """A config with one layer of each kind, at least two layers, and lengths for the test.

    Args:
        keep_widths: Keep the sizes of the layers.
    """
    by_index = config.to_dict().get("per_layer_config") or {}
    overrides = {int(layer): values for layer, values in by_index.items()}
    whole = copy.deepcopy(config)
    if overrides:
        whole.per_layer_config = None
    tiny = copy.deepcopy(whole)
    layers = _take_layers(whole, tiny, overrides)
    for holder, name, value in _lengths(tiny):
        _put(holder, name, reach.shorten(value))
    sizes = _EXPERTS if keep_widths else {**_EXPERTS, **_widths(whole)}
    for name, size in sizes.items():
        fixed = isinstance(getattr(type(tiny), name, None), property)
        value = getattr(tiny, name, None)
        if isinstance(value, int) and not fixed:
            setattr(tiny, name, size)
        elif isinstance(value, list) and not fixed:  # one a layer, as in Gemma-3n
            setattr(tiny, name, [size] * len(value))
    _name_tokens(tiny)
    if not keep_widths:
        _shorten_factors(whole, tiny)
    if overrides:
        tiny.per_layer_config = {
            place: {name: _scaled(whole, tiny, name, value) for name, value in own.items()}
            for place, layer in enumerate(layers)
            if (own := overrides.get(layer))
        }
    return tiny


def lengths_of(config: PretrainedConfig) -> list[tuple[str, int]]:
    """Names and values of the config numbers that may be compared with a position in a row."""
    return [(name, value) for _, name, value in _lengths(config)]


def _take_layers(whole: Any, tiny: Any, overrides: dict[int, dict[str, Any]]) -> list[int]:
    """Give the copy the first layer of each kind. Returns the numbers of these layers."""
    count = whole.num_hidden_layers
    lists = {name: list(v) for name, v in vars(whole).items() if isinstance(v, list | tuple)}
    by_layer = {name: values for name, values in lists.items() if len(values) == count}
    numbers = [name for name, values in by_layer.items() if values == list(range(count))]
    chosen = {name: values for name, values in lists.items() if _chooses(name, values, count)}
    # The last layers of Gemma-3n reuse the keys and values of layers before them.
    shared = getattr(whole, "num_kv_shared_layers", 0) or 0
    kinds = [
        (
            layer >= count - shared,
            overrides.get(layer),
            *(layer in values for values in chosen.values()),
            *(values[layer] for name, values in by_layer.items() if name not in numbers),
        )
        for layer in range(count)
    ]
    first = {str(kind): layer for layer, kind in reversed(list(enumerate(kinds)))}
    layers = sorted(first.values()) if len(first) > 1 else list(range(min(2, count)))
    for name, values in by_layer.items():
        kept = [values[layer] for layer in layers]
        setattr(tiny, name, list(range(len(layers))) if name in numbers else kept)
    for name, values in chosen.items():
        setattr(tiny, name, [place for place, layer in enumerate(layers) if layer in values])
    tiny.num_hidden_layers = len(layers)
    if shared:
        tiny.num_kv_shared_layers = sum(layer >= count - shared for layer in layers)
    return layers


def _chooses(name: str, values: list[Any], count: int) -> bool:
    """Whether a list contains numbers of layers, such as mlp_only_layers."""
    named = ("layer" in name or "idx" in name) and 0 < len(values) < count
    return named and all(type(each) is int and 0 <= each < count for each in values)


def _lengths(holder: Any) -> Iterator[tuple[Any, str, int]]:
    """Yield every length of a config and of its nested configs and dicts, as holder, name and
    value."""
    values = holder if isinstance(holder, dict) else vars(holder)
    for name, value in list(values.items()):
        if isinstance(value, dict | PretrainedConfig):
            yield from _lengths(value)
        elif _is_length(str(name), value):
            yield holder, str(name), value


def _is_length(name: str, value: object) -> bool:
    counts = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return counts and bool(_LENGTH.search(name)) and not _NO_LENGTH.search(name)


def _put(holder: Any, name: str, value: object) -> None:
    if isinstance(holder, dict):
        holder[name] = value
    else:
        setattr(holder, name, value)


def _name_tokens(tiny: Any) -> None:
    """Give the special tokens that the model has ids within the small vocabulary."""
    names = ("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id")
    for number, name in enumerate(names, 1):
        value = getattr(tiny, name, None)
        if value is not None:
            setattr(tiny, name, [number] if isinstance(value, list) else number)


def _shorten_factors(whole: Any, tiny: Any) -> None:
    """Shorten the lists of Long RoPE, which have one factor per rotated pair of dimensions."""
    rope = getattr(tiny, "rope_parameters", None) or {}
    heads = getattr(whole, "num_attention_heads", None) or 1
    size = getattr(whole, "head_dim", None) or getattr(whole, "hidden_size", 1) // heads
    for name in {"short_factor", "long_factor"} & set(rope):
        rope[name] = rope[name][: len(rope[name]) * _WIDTHS["head_dim"] // size]


def _scaled(whole: Any, tiny: Any, name: str, value: Any) -> Any:
    """A layer's own size, scaled by the ratio of the copy's size to the model's."""
    own, small = getattr(whole, name, None), getattr(tiny, name, None)
    sized = all(isinstance(each, int) and each > 0 for each in (own, small, value))
    return max(1, small * value // own) if sized else value


def _widths(whole: Any) -> dict[str, int]:
    heads = getattr(whole, "num_attention_heads", None) or 1
    groups = getattr(whole, "num_key_value_heads", None)
    sizes = dict(_WIDTHS)
    if hasattr(whole, "qk_rope_head_dim"):
        sizes["head_dim"] = sizes["qk_rope_head_dim"]
    if hasattr(whole, "expand"):  # Mamba-2 says how many heads its expanded width has
        sizes["num_heads"] = sizes["hidden_size"] * whole.expand // sizes["head_dim"]
    for name in ("attention_hidden_size", "attention_head_dim", "d_inner"):
        if getattr(whole, name, None) and whole.hidden_size:
            sizes[name] = 64 * getattr(whole, name) // whole.hidden_size
    sizes["num_key_value_heads"] = 2 if groups and 1 < groups < heads else 1 if groups == 1 else 4
    return sizes


_WIDTHS = {
    "hidden_size": 64,
    "word_embed_proj_dim": 64,
    "embedding_size": 64,
    "embedding_dim": 64,
    "input_embedding_size": 64,
    "output_embedding_size": 64,
    "hidden_size_per_layer_input": 16,
    "laurel_rank": 8,
    "intermediate_size": 96,
    "intermediate_size_mlp": 96,
    "ffn_dim": 96,
    "num_attention_heads": 4,
    "decoder_attention_heads": 4,
    "head_dim": 16,
    "global_head_dim": 16,
    "rotary_dim": 8,
    "lru_width": 64,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "qk_head_dim": 16,
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
    "mamba_headdim": 16,
    "mamba_ngroups": 1,
    "n_mamba_heads": 4,
    "n_groups": 1,
    "kv_channels": 16,
}
"""Sizes of the tiny copy's layers, if the architecture has them as numbers."""

_EXPERTS = {
    "vocab_size": VOCABULARY,
    "vocab_size_per_layer_input": VOCABULARY,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "index_topk_blocks": 2,
}
"""Sizes that are small in every copy: the vocabulary and the experts."""
