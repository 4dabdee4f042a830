"""Loads a tokenizer or trains one on text. Both have the control tokens.

Imports neither file formats nor Ray.
"""

import hashlib
from collections.abc import Iterable

import transformers  # importing a class by name here would import torch, which takes seconds
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from metaalign.errors import TemplateError
from metaalign.template import CONTROL_TOKENS, Template, read_tokenizer

END_TOKEN, PADDING_TOKEN = "<|end|>", "<|padding|>"

_SAMPLE_CHARACTERS = 3_000_000


def load_tokenizer(path: str) -> Template:
    """Load the tokenizer of a Hugging Face folder or hub name; missing control tokens are added.

    Raises:
        TemplateError: it cannot be loaded or cannot be used with the template.
    """
    try:
        tokenizer = read_tokenizer(path)
    except TemplateError as error:
        raise TemplateError(f"tokenizer.path: {error}") from error
    missing = [token for token in CONTROL_TOKENS.values() if token not in tokenizer.get_vocab()]
    added = [AddedToken(token, special=True, normalized=False) for token in missing]
    tokenizer.add_tokens(added, special_tokens=True)  # pyright: ignore[reportArgumentType]
    return Template(tokenizer)


def train_tokenizer(texts: Iterable[str], vocabulary_size: int) -> Template:
    """Train a byte-level BPE. The same texts in any order give the same tokenizer.

    Args:
        texts: Distinct segments. If there are many, take a sample with `sample_texts`.
        vocabulary_size: Number of tokens, including control tokens. A small text may give fewer.
    """
    special = [END_TOKEN, PADDING_TOKEN, *CONTROL_TOKENS.values()]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(sorted(texts), trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=END_TOKEN, pad_token=PADDING_TOKEN
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(CONTROL_TOKENS.values())})
    return Template(tokenizer)


def sample_texts(texts: Iterable[str], characters: int = _SAMPLE_CHARACTERS) -> list[str]:
    """Distinct texts in the order of their hashes, until they have enough characters.

    A sample of the union of samples equals the sample of all texts, so the result does not depend
    on how the texts are split over tasks.
    """
    sample, held = [], 0
    for text in sorted(set(texts), key=_hash):
        if held >= characters:
            break
        sample.append(text)
        held += len(text)
    return sample


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()
