"""A Hugging Face folder with a tiny random Llama and a real template, for tests that generate."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

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
