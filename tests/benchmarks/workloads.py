"""Examples of chosen lengths over random tokens, as a token store, and the random model for them.

Lengths are lognormal, clipped to a quarter and four times their mean, so that a batch that is
padded to its longest wastes what it would on public preference data, or less: the logarithms of
hh_rlhf's lengths in characters spread by 0.85 to 1.1, these by SPREAD.

The better response of an example draws its tokens from the upper half of the vocabulary, so that
there is a preference to learn: a loss that only wandered about log 2 would hide a wrong sign.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from metaalign.store.encoder import ENCODED_SCHEMA, Encoded
from metaalign.store.token_store import TokenStore
from metaalign.store.tokenizer import train_tokenizer
from metaalign.store.writer import StoreWriter
from metaalign.template import TIERS

SPREAD = 0.5
"""Of the logarithms of lengths: their standard deviation."""
TOKENIZER_TOKENS = 270
"""Ids below this one belong to the tokenizer's bytes and control tokens; texts are drawn above."""


@dataclass(frozen=True)
class Shape:
    """Mean lengths in tokens, and how many queries share a meta-prompt."""

    meta_prompt: int
    queries: int
    query: int
    response: int = 85


HH_LIKE = Shape(meta_prompt=0, queries=1, query=210)
METAALIGN_LIKE = Shape(meta_prompt=150, queries=4, query=60)
SHAPES = {"a": HH_LIKE, "b": METAALIGN_LIKE}

SMALL: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "initializer_range": 0.06,
}
"""A Llama of 256 x 4 with heads of 64."""


def write_store(
    folder: Path, shape: Shape, *, groups: int, vocabulary: int, seed: int = 0
) -> TokenStore:
    """A store of `groups` meta-prompts, each before its queries, each with two responses.

    The first response of every example scores higher.
    """
    rng = np.random.default_rng(seed)
    tokens: list[np.ndarray] = []
    rows: list[dict] = []
    for group in range(groups):
        meta_prompt = _text(rng, shape.meta_prompt, vocabulary)
        for _ in range(shape.queries):
            query = _text(rng, shape.query, vocabulary)
            half = (TOKENIZER_TOKENS + vocabulary) // 2
            better = _text(rng, shape.response, vocabulary, lowest=half)
            responses = [better, _text(rng, shape.response, vocabulary)]
            offset = sum(map(len, tokens))
            rows.append(_row(len(rows), group, offset, meta_prompt, query, responses))
            tokens += [meta_prompt, query, np.zeros(1, np.int32), *responses]
    index = pa.Table.from_pylist(rows, schema=ENCODED_SCHEMA)
    with StoreWriter(folder) as writer:
        writer.add(Encoded(np.concatenate(tokens), index))
        template = train_tokenizer(["a b c"], TOKENIZER_TOKENS)
        return writer.finish(template, fingerprint=f"{shape} {groups} {vocabulary} {seed}")


def write_model(
    folder: Path, *, vocabulary: int, architecture: Mapping[str, Any] = SMALL, seed: int = 0
) -> Path:
    """A random Llama in a Hugging Face folder. `architecture` holds keys of its config."""
    torch.manual_seed(seed)
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
    config = LlamaConfig(vocab_size=vocabulary, **architecture, **ids)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def _text(
    rng: np.random.Generator, mean: int, vocabulary: int, lowest: int = TOKENIZER_TOKENS
) -> np.ndarray:
    """Random tokens, of a lognormal number with this mean."""
    if not mean:
        return np.zeros(0, np.int32)
    drawn = rng.lognormal(np.log(mean) - SPREAD**2 / 2, SPREAD)
    length = round(float(np.clip(drawn, mean / 4, mean * 4)))
    return rng.integers(lowest, vocabulary, length, dtype=np.int32)


def _row(
    number: int,
    group: int,
    offset: int,
    meta_prompt: np.ndarray,
    query: np.ndarray,
    responses: list[np.ndarray],
) -> dict:
    return {
        "offset": offset,
        "prompt_length": len(meta_prompt) + len(query) + 1,
        "segment_tiers": [TIERS.index("user_info"), TIERS.index("user_query")],
        "segment_lengths": [len(meta_prompt), len(query)],
        "response_lengths": [len(response) for response in responses],
        "objectives": ["preference"],
        "scores": [[1.0], [0.0]],
        "order_by": "preference",
        "desirable": [None, None],
        "weight": 1.0,
        "margin": 0.0,
        "meta_prompt": group,
        "conversation": number,
        "split": "train",
        "tags": [],
        "source_file": "random",
        "source_row": number,
    }
