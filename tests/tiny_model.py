"""A Hugging Face folder with a tiny random Llama and a real template, for tests that generate."""

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from metaalign.store.token_store import TokenStore
from metaalign.store.tokenizer import train_tokenizer
from metaalign.template import Template

TEXTS = (
    "What is the capital of Peru?",
    "Answer in capitals.",
    "The capital of Peru is Lima.",
    "I like short answers, please be brief. ¿Qué tal? 日本",
)


def save_tiny_model(
    folder: Path, *, context: int = 256, seed: int = 0, template: Template | None = None
) -> Path:
    """Write the folder; weights are large enough for answers that differ from prompt to prompt."""
    template = template or train_tokenizer(TEXTS, 300)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=template.vocabulary_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    template.save(folder)
    return folder


@torch.no_grad()
def plain_logprob(folder: Path, store: TokenStore, example: int, response: int) -> float:
    """Of one response in nats, through the model's own forward on its sequence alone."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    prompt, answer = store.prompt(example), store.response(example, response)
    tokens = torch.from_numpy(np.concatenate([prompt, answer]).astype(np.int64))
    logprobs = model(tokens[None]).logits[0].log_softmax(-1)
    predicted = logprobs[len(prompt) - 1 : -1].gather(1, tokens[len(prompt) :, None])
    return float(predicted.sum())
