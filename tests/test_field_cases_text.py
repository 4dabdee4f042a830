"""Cases from the field whose fault lies in text, tokens, files or requests, not in a row's shape.

Each folder of `shared/data/field_cases` says in its README what was run, got and expected.
"""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer

from metaalign.config import ExportConfig, PrepareConfig
from metaalign.data.sources.outcome import FileRead
from metaalign.data.work.limits import check_ledger
from metaalign.data.work.parts import plan_parts, read_part, split_parts
from metaalign.data.work.passes import write_part
from metaalign.errors import DataError, TemplateError
from metaalign.serve.api import to_segments
from metaalign.serve.bodies import ChatRequest
from metaalign.store.encoder import SegmentEncoder
from metaalign.store.token_store import TokenStore
from metaalign.store.tokenizer import load_tokenizer, train_tokenizer
from metaalign.store.writer import StoreWriter
from metaalign.template import Segment, Template, read_tokenizer
from metaalign.train.checkpoints.recipe import MODEL_FOLDER
from metaalign.train.export import run_export
from tests.test_export import trained
from tests.test_round_trip import letters_only
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


def rows_of(path: Path, **source: Any) -> FileRead:
    """What a prepare job reads of a file."""
    config = PrepareConfig.model_validate(
        {"storage": "/nowhere", "sources": [{"path": str(path), **source}]}
    )
    (part,) = split_parts(plan_parts(config), path.parent)
    (read,) = read_part(part)
    return read


def test_case_12_characters_lost_by_the_tokenizer_are_refused_or_told(
    field_cases: Path, tmp_path: Path
) -> None:
    file = field_cases / "12_characters_lost_by_the_tokenizer" / "emoji.jsonl"
    encoder = SegmentEncoder(letters_only())
    for allowed in (0.01, 0.9):
        config = PrepareConfig.model_validate(
            {
                "storage": str(tmp_path),
                "sources": [{"path": str(file)}],
                "held_out_ratio": 0,
                "tokenizer": {"path": "nounk"},
                "max_lost_text_ratio": allowed,
            }
        )
        parts = split_parts(plan_parts(config), tmp_path)
        with StoreWriter(tmp_path / "store") as writer:
            write_part(parts[0], 0, writer.folder, encoder)
            if allowed == 0.01:
                with pytest.raises(
                    DataError, match="tokenizer nounk does not give back 3 of 6 texts"
                ):
                    check_ledger(config, parts, writer)
            else:
                (entry,) = check_ledger(config, parts, writer)
                assert {"text": "🙂🙂", "back": ""} in entry["lost"]
                assert entry["checked_texts"] == 6


def test_case_13_decimals_and_maps_are_scores(field_cases: Path) -> None:
    folder = field_cases / "13_decimal_scores"
    for name, objective in (("decimal_scores", "overall"), ("map_annotations", "helpfulness")):
        read = rows_of(folder / f"{name}.parquet")
        assert not read.bad
        (example,) = read.examples
        better, worse = example.responses
        assert (better.text, worse.text) == ("Lima.", "Quito.")
        wanted = (4.5, 1.0) if objective == "overall" else (5.0, 1.0)
        assert (better.scores[objective], worse.scores[objective]) == wanted
    (example,) = rows_of(folder / "decimal_pair.parquet").examples
    assert [each.scores["rating"] for each in example.responses] == [4.5, 1.5]


def test_case_16_utf16_is_read(field_cases: Path) -> None:
    read = rows_of(field_cases / "16_unclear_errors" / "utf16le_bom.csv")
    assert not read.bad
    assert read.examples[0].turns[0].text == "Où est le café ?"


def test_case_16_a_pretty_printed_object_names_the_list_and_reads_it(field_cases: Path) -> None:
    file = field_cases / "16_unclear_errors" / "pretty.json"
    with pytest.raises(DataError, match="may be the list under 'data': set field=data in this"):
        rows_of(file)
    (example,) = rows_of(file, field="data").examples
    assert [each.text for each in example.responses] == ["A", "B"]


def test_case_16_nan_of_pandas_is_null(field_cases: Path) -> None:
    read = rows_of(field_cases / "16_unclear_errors" / "nan_json.jsonl")
    assert not read.bad
    assert [example.turns[0].text for example in read.examples] == [
        "Capital of Peru?",
        "Say it.\n\nhola",
    ]


def test_case_16_a_sentencepiece_model_alone_says_what_it_needs(tmp_path: Path) -> None:
    if importlib.util.find_spec("sentencepiece") is not None:
        pytest.skip("the package sentencepiece is installed here")
    # A vocabulary of `<unk>` and `a`, as sentencepiece writes it.
    model = b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02\n\x08\n\x01a\x15\x00\x00\x80\xbf"
    (tmp_path / "tokenizer.model").write_bytes(model)
    with pytest.raises(TemplateError, match="the package sentencepiece is needed: install it"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")  # tiktoken's format
    with pytest.raises(TemplateError, match="tiktoken"):
        read_tokenizer(tmp_path)
