"""Cases from the field whose fault lies in text, tokens, files or requests, not in a row's shape.

Each folder of `shared/data/field_cases` says in its README what was run, got and expected.
"""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer

from metaalign.config import ExportConfig
from metaalign.errors import TemplateError
from metaalign.serve.api import to_segments
from metaalign.serve.bodies import ChatRequest
from metaalign.store.token_store import TokenStore
from metaalign.store.tokenizer import load_tokenizer, train_tokenizer
from metaalign.template import Segment, Template, read_tokenizer
from metaalign.train.export import MODEL_FOLDER, run_export
from tests.test_export import trained
from tests.tiny_task import tiny_task

TEXTS = ("Answer in capitals.", "What is the capital of Peru?", "It is Lima. ¡Sí!")


@pytest.fixture(scope="module")
def field_cases(shared_data: Path) -> Path:
    folder = shared_data / "field_cases"
    if not folder.is_dir():
        pytest.skip("the folder shared/data/field_cases does not lie beside the checkout")
    return folder


def test_case_04_added_tokens_come_back_as_text(field_cases: Path, tmp_path: Path) -> None:
    assert (field_cases / "04_added_tokens" / "README.md").is_file()
    tokenizer = train_tokenizer(TEXTS, 300).tokenizer
    tokenizer.add_tokens([AddedToken(each, special=False) for each in ("<think>", "</think>")])  # pyright: ignore
    tokenizer.save_pretrained(str(tmp_path))
    template = load_tokenizer(str(tmp_path))
    (ids,) = template.encode_texts(["<think>x</think>"])
    assert ids == tokenizer.encode("<think>x</think>", add_special_tokens=False)
    assert len(ids) == 3
    assert template.decode(template.response_ids("<think>x</think>")) == "<think>x</think>"


def test_case_05_an_export_carries_no_chat_template_of_its_base_model(
    field_cases: Path, tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    chat = (field_cases / "05_export_keeps_chat_template" / "chat_template.jinja").read_text()
    task = tiny_task(tmp_path, make_store)
    trained(task)
    # As a run's folder holds it whose store was prepared from an instruct model's tokenizer.
    place = tmp_path / "sft" / MODEL_FOLDER
    (place / "chat_template.jinja").write_text(chat)
    assert AutoTokenizer.from_pretrained(place).chat_template == chat
    folder = run_export(ExportConfig(storage=str(tmp_path), run="sft", output="out"))
    exported = AutoTokenizer.from_pretrained(folder)
    assert exported.chat_template is None
    with pytest.raises(ValueError, match="chat_template is not set"):
        exported.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert Template.verify(folder).fingerprint == Template.verify(place).fingerprint


def test_case_14_a_messages_name_is_accepted(field_cases: Path) -> None:
    body = json.loads((field_cases / "14_serve_message_name" / "body.json").read_text())
    assert to_segments(ChatRequest.model_validate(body)) == [Segment("user_query", "Hi")]


def test_case_16_a_sentencepiece_model_alone_says_what_it_needs(tmp_path: Path) -> None:
    if importlib.util.find_spec("sentencepiece") is not None:
        pytest.skip("the package sentencepiece is installed here")
    # A vocabulary of `<unk>` and `a`, as sentencepiece writes it.
    model = b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02\n\x08\n\x01a\x15\x00\x00\x80\xbf"
    (tmp_path / "tokenizer.model").write_bytes(model)
    with pytest.raises(TemplateError, match="needs the package sentencepiece: install it"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")  # tiktoken's format
    with pytest.raises(TemplateError, match="tiktoken"):
        read_tokenizer(tmp_path)
