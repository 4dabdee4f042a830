"""A tokenizer for what people write: no text can make one of its special or control tokens.

Knows no tier and no template.
"""

import json
import secrets
from collections.abc import Mapping, Set

from tokenizers import AddedToken, Tokenizer


def plain_text_tokenizer(serialized: str, *, kept: Set[str], forbidden: Set[str]) -> Tokenizer:
    """A copy of a tokenizer that no text can make a forbidden token with. Ids stay as they are.

    Args:
        serialized: The tokenizer, as `tokenizer.json` holds it.
        kept: The added tokens that text may make, such as `<think>`; it makes no other.
        forbidden: Tokens, added or of the model's own vocabulary. In the vocabulary they are
            renamed to something that nobody can type: a Unigram model, or a BPE that ignores
            merges, would match them in text.
    """
    backend = json.loads(serialized)
    model, secret = backend["model"], secrets.token_hex(16)
    vocabulary = model["vocab"]
    known = set(vocabulary) if isinstance(vocabulary, dict) else {token for token, _ in vocabulary}
    added = [
        token if token["content"] in kept else {**token, "content": secret + token["content"]}
        for token in backend["added_tokens"]
        if kept and (token["content"] in kept or token["content"] not in known)
    ]  # all those outside the vocabulary, since an added token's place in the list makes its id
    backend.update(added_tokens=added)
    backend.update(post_processor=None, truncation=None, padding=None)
    names = {token: secret + token for token in forbidden}
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(token, token): id for token, id in vocabulary.items()}
    else:
        model["vocab"] = [[names.get(token, token), score] for token, score in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if _spells_none(merge, forbidden)]
    return Tokenizer.from_str(json.dumps(backend))


def _spells_none(merge: str | list[str], forbidden: Set[str]) -> bool:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return forbidden.isdisjoint((left, right, left + right))


def ids_outside(added: Mapping[int, AddedToken], backend: Tokenizer) -> set[int]:
    """Ids of the added tokens that a plain-text tokenizer does not decode to their content, such as
    an unknown token outside the model's own vocabulary."""
    return {id for id, token in added.items() if backend.id_to_token(id) != token.content}
