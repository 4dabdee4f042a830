"""A tokenizer, trained or loaded, carries the control tokens and comes out the same every time."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaalign.errors import TemplateError
from metaalign.store.tokenizer import load_tokenizer, sample_texts, train_tokenizer
from metaalign.template import CONTROL_TOKENS, Template

TEXTS = [f"{word} {i} likes {word}s." for i in range(40) for word in ("cat", "dog", "owl")]


def test_the_trained_vocabulary_has_the_size_that_was_asked_for() -> None:
    template = train_tokenizer(TEXTS, 300)
    assert template.vocabulary_size == len(template.tokenizer) == 300
    # End, padding and the four control tokens come first, then the 256 bytes.
    assert (template.eos_id, template.tokenizer.pad_token_id) == (0, 1)
    assert sorted(template.control_ids.values()) == [2, 3, 4, 5]
    assert template.bos_id is None


def test_too_little_text_fills_less_of_it() -> None:
    assert train_tokenizer(["ab ab"], 1000).vocabulary_size == 6 + 256 + 2  # "ab", " ab"


def test_frequent_words_become_one_token() -> None:
    template = train_tokenizer(TEXTS, 400)
    assert len(template.encode_texts([" likes"])[0]) == 1


def test_training_does_not_depend_on_the_order_of_the_texts() -> None:
    shuffled = random.Random(0).sample(TEXTS, len(TEXTS))
    assert train_tokenizer(shuffled, 320).fingerprint == train_tokenizer(TEXTS, 320).fingerprint


def test_training_gives_the_same_in_another_process() -> None:
    code = (
        "from tests.test_tokenizer import TEXTS, train_tokenizer;"
        "print(train_tokenizer(TEXTS, 320).fingerprint)"
    )
    folder = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == train_tokenizer(TEXTS, 320).fingerprint


def test_loading_adds_the_control_tokens_after_the_old_vocabulary(shared_data: Path) -> None:
    template = load_tokenizer(str(shared_data / "stories260k"))
    assert sorted(template.control_ids.values()) == [512, 513, 514, 515]
    assert (template.bos_id, template.eos_id, template.vocabulary_size) == (1, 2, 516)


def test_loading_one_that_has_them_changes_nothing(tmp_path: Path) -> None:
    template = train_tokenizer(TEXTS, 300)
    template.save(tmp_path)
    assert load_tokenizer(str(tmp_path)).fingerprint == template.fingerprint
    assert Template.load(tmp_path).control_ids.keys() == CONTROL_TOKENS.keys()


@pytest.mark.parametrize("content", ["{", '{"a": 1}', "", "[]"])
def test_a_damaged_tokenizer_file_is_one_error(tmp_path: Path, content: str) -> None:
    train_tokenizer(TEXTS, 300).save(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(TemplateError, match="no tokenizer can be loaded"):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match=rf"tokenizer\.path: {tmp_path}/none: no tokenizer"):
        load_tokenizer(str(tmp_path / "none"))


@given(texts=st.lists(st.text(max_size=6), max_size=30), cut=st.integers(0, 30))
def test_a_sample_of_samples_is_the_sample_of_the_whole(texts: list[str], cut: int) -> None:
    first, second = sample_texts(texts[:cut], 20), sample_texts(texts[cut:], 20)
    assert sample_texts([*second, *first], 20) == sample_texts(texts, 20)


def test_a_sample_ends_once_it_holds_enough_characters() -> None:
    sample = sample_texts([f"{i:04d}" for i in range(100)] * 2, 41)
    assert len(sample) == len(set(sample)) == 11
