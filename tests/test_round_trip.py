"""Texts that a tokenizer does not give back are counted, and above a share they are an error."""

from array import array
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from metaalign.config import PrepareConfig
from metaalign.data.work.ledger import LOST
from metaalign.data.work.limits import check_ledger
from metaalign.data.work.parts import plan_parts, split_parts
from metaalign.data.work.passes import write_part
from metaalign.errors import DataError
from metaalign.store.encoder import SegmentEncoder
from metaalign.store.round_trip import RoundTrip, comes_back
from metaalign.store.tokenizer import train_tokenizer
from metaalign.store.writer import StoreWriter
from metaalign.template import CONTROL_TOKENS, Template
from tests.test_column_mapping import write

LETTERS = "abcdefghijklmnopqrstuvwxyz .?ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def letters_only(normalizer: normalizers.Normalizer | None = None) -> Template:
    """A tokenizer that drops every character it does not know, as one without unknown token."""
    vocabulary = {letter: place for place, letter in enumerate([*LETTERS, "▁"])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    if normalizer is not None:
        backend.normalizer = normalizer  # pyright: ignore
    backend.add_special_tokens([*CONTROL_TOKENS.values(), "</s>"])
    return Template(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"))


def check(template: Template, texts: list[str]) -> RoundTrip:
    found = RoundTrip(template)
    ids = map(array, "i" * len(texts), template.encode_texts(texts))
    found.take(texts, {text: each.tobytes() for text, each in zip(texts, ids, strict=True)})
    return found


def test_what_does_not_come_back_is_counted_once_a_text() -> None:
    found = check(letters_only(), ["hello.", "wave 🙂🙂", "42", "a b", " lima"])
    assert (found.checked, found.lost) == (5, 2)
    assert found.examples == [{"text": "wave 🙂🙂", "back": "wave "}, {"text": "42", "back": ""}]


def test_a_byte_level_tokenizer_loses_nothing() -> None:
    texts = ["hello", " 🙂 42 ", "\n\té e\u0301\0", "<|response|>"]
    assert check(train_tokenizer(TRAINED, 300), texts).lost == 0


TRAINED = ["Capital of Peru?", "Lima."]


@pytest.mark.parametrize(
    ("text", "back", "same"),
    [
        ("caf\u00e9", "cafe\u0301", True),  # é in one code point and in two
        ("lima", " lima", True),
        (" lima", "lima", True),
        ("  lima", "lima", False),
        ("Lima", "lima", False),
        ("ﬁx ①", "fix 1", False),
        ("a  b", "a b", False),
        ("🙂", "", False),
    ],
)
def test_what_is_told_is_what_is_lost(text: str, back: str, same: bool) -> None:
    assert comes_back(text, back) == same


def test_a_lowercasing_tokenizer_is_told() -> None:
    found = check(letters_only(normalizers.Lowercase()), ["Answer in capitals.", "lima"])
    assert (found.checked, found.lost) == (2, 1)


ROWS = [{"prompt": f"ask {letter}?", "completion": f"say {letter}."} for letter in LETTERS[:26]]


def prepared(tmp_path: Path, **settings: object) -> list[dict]:
    """The ledger of a job with the tokenizer of letters, without Ray."""
    file = write(tmp_path / "rows.jsonl", [*ROWS, {"prompt": "wave?", "completion": "🙂🙂"}])
    base = {"storage": str(tmp_path), "held_out_ratio": 0, "tokenizer": {"path": "/letters"}}
    config = PrepareConfig.model_validate({**base, "sources": [{"path": str(file)}], **settings})
    parts = split_parts(plan_parts(config), tmp_path)
    with StoreWriter(tmp_path / "store") as writer:
        encoder = SegmentEncoder(letters_only())
        for number, part in enumerate(parts):
            write_part(part, number, writer.folder, encoder)
        return check_ledger(config, parts, writer)


def test_a_share_of_lost_texts_above_the_limit_names_tokenizer_text_and_remedy(
    tmp_path: Path,
) -> None:
    with pytest.raises(DataError) as error:
        prepared(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}/rows.jsonl: the tokenizer /letters does not give back 1 of 54 texts that were "
        "checked, more than max_lost_text_ratio 0.01 allows. '🙂🙂' comes back as ''. A "
        "model can neither read nor write what the tokenizer loses: set a tokenizer.path that has "
        "these characters, leave it out to train one that has all, or raise max_lost_text_ratio"
    )


def test_a_share_below_the_limit_is_in_the_ledger(tmp_path: Path) -> None:
    (entry,) = prepared(tmp_path, max_lost_text_ratio=0.05)
    assert (entry["checked_texts"], entry["lost_texts"]) == (54, 1)
    assert entry[LOST] == [{"text": "🙂🙂", "back": ""}]
