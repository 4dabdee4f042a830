"""Compares a template's token ids with a model's, and adds vocabulary rows to the model."""

import logging
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig

from metaalign.errors import ModelError
from metaalign.template import Template

NEW_ROW_NOISE = 0.1
"""Standard deviation of new vocabulary rows, as a share of that of the old rows."""

logger = logging.getLogger(__name__)


def vocabulary_modules(model: Any) -> list[Any]:
    """Embedding and head; only one of them if they share their weights."""
    modules = [model.get_input_embeddings(), model.get_output_embeddings()]
    distinct: dict[int, nn.Module] = {id(m.weight): m for m in modules if m is not None}
    return list(distinct.values())


def has_new_tokens(source: str, template: Template) -> bool:
    """Whether the template has tokens that the tokenizer at `source` lacks."""
    own = AutoTokenizer.from_pretrained(source).get_vocab()
    return not own.keys() >= template.tokenizer.get_vocab().keys()


def needed_rows(template: Template) -> int:
    """Number of vocabulary rows that the template's tokens need."""
    return max(template.tokenizer.get_vocab().values()) + 1


def rows_of(config: PretrainedConfig) -> int:
    """Number of rows of the model's embedding."""
    return int(config.get_text_config().vocab_size)


def grown_model(source: str, size: int, seed: int) -> Any:
    """The pretrained model with a vocabulary of at least `size` rows. The seed sets new ones."""
    model: Any = AutoModelForCausalLM.from_pretrained(source)
    old = model.get_input_embeddings().num_embeddings
    if old >= size:
        return model
    model.resize_token_embeddings(size, mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    for module in vocabulary_modules(model):
        fill_new_rows(module.weight.data, old, generator)
    logger.info("vocabulary of %s grown from %d to %d rows", source, old, size)
    return model


def fill_new_rows(table: Tensor, old: int, generator: torch.Generator) -> None:
    """Fill the new rows of `table` with the mean of the old rows plus noise.

    The mean makes new tokens neither likely nor impossible; the noise makes their rows differ.
    """
    known = table[:old].float()
    noise = torch.randn((len(table) - old, table.shape[1]), generator=generator)
    table[old:] = (known.mean(0) + NEW_ROW_NOISE * known.std(0) * noise).to(table.dtype)


def check_tokenizer(source: str, template: Template, setting: str = "model.path") -> None:
    """Check that every token of the model's tokenizer has the same id in the store.

    Raises:
        ModelError: there is no tokenizer, or an id differs.
    """
    try:
        own = AutoTokenizer.from_pretrained(source).get_vocab()
    except (OSError, ValueError) as error:
        raise ModelError(f"{setting} {source!r} has no tokenizer: {error}") from error
    ours = template.tokenizer.get_vocab()
    wrong = next((token for token, number in own.items() if ours.get(token) != number), None)
    if wrong is not None:
        raise ModelError(
            f"{setting} {source!r} has another tokenizer than the token store: {wrong!r} is "
            f"{own[wrong]} there and {ours.get(wrong)} in the store. Prepare the store with "
            f"tokenizer.path={source}"
        )
