"""The tokenizer: loaded, or trained on text; either way it carries the control tokens.

Knows no file format and no Ray.
"""

import hashlib
from collections.abc import Iterable

import transformers  # its classes are named in full: importing one imports torch, for seconds
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from metaalign.errors import TemplateError
from metaalign.template import CONTROL_TOKENS, Template, read_tokenizer

END_TOKEN, PADDING_TOKEN = "<|end|>", "<|padding|>"

_SAMPLE_CHARACTERS = 3_000_000


def load_tokenizer(path: str) -> Template:
    """The template of a Hugging Face folder or hub name; control tokens are added if missing.

    Raises:
        TemplateError: it cannot be loaded or cannot carry the template.
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
        texts: Distinct segments; `sample_texts` chooses them where there are many.
        vocabulary_size: Of the result, control tokens included; fewer where the text is too
            small to fill it.
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
    """Distinct texts in the order of their hashes, until they hold enough characters.

    So a sample of samples is the sample of the whole, however the texts were dealt over tasks.
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
