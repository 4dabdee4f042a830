"""Every file shape to examples; every bad row to quarantine with its reason, none in silence."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaalign.data.formats import SHAPES, detect_format, read_rows
from metaalign.data.sources.options import SourceOptions
from metaalign.data.sources.outcome import FileRead
from metaalign.data.sources.records import read_records
from metaalign.errors import DataError
from metaalign.examples import Example, Response, Source, Turn
from tests.example_rows import EXAMPLE_SCHEMA, to_row

PAIR = {"preference": 1.0}, {"preference": 0.0}


def write(folder: Path, *rows: Any, name: str = "rows.jsonl") -> Path:
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def read_file(file: Path, format: str, options: SourceOptions) -> FileRead:
    return read_rows(read_records(file), str(file), format, options)


def told(file: Path) -> str:
    return detect_format(read_records(file), str(file))


def read(folder: Path, format: str, *rows: Any, **options: Any) -> FileRead:
    return read_file(write(folder, *rows), format, SourceOptions(**options))


def only(result: FileRead) -> Example:
    (example,) = result.examples
    assert result.bad == []
    return example


def reason(result: FileRead) -> str:
    (bad,) = result.bad
    assert result.examples == []
    return bad.reason


def hh(*turns: str) -> str:
    return "".join(f"\n\n{who}: {text}" for who, text in zip(("Human", "Assistant") * 9, turns))  # noqa: B905


def test_an_hh_rlhf_transcript_splits_into_turns_and_two_responses(tmp_path: Path) -> None:
    row = {"chosen": hh("Hi", "Hello!", "Lima?", "In Peru."), "rejected": hh("Hi", "Hello!", "Lima?", "No.")}  # fmt: skip  # noqa: E501
    example = only(read(tmp_path, "hh_rlhf", row))
    assert example.turns == (Turn("user", "Hi"), Turn("assistant", "Hello!"), Turn("user", "Lima?"))
    assert example.responses == (Response("In Peru.", PAIR[0]), Response("No.", PAIR[1]))
    assert example.source == Source(str(tmp_path / "rows.jsonl"), 0)
    assert example.order_scores() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("chosen", "rejected", "why"),
    [
        (hh("Hi", "a"), hh("Hi", "a"), "two responses are equal"),
        (hh("Hi", "a"), hh("Ho", "b"), "chosen and rejected differ before their last turn"),
        (hh("Hi", " "), hh("Hi", "b"), "a response is empty"),
        (hh("Hi"), hh("Hi", "b"), "chosen: the last turn is not the assistant's"),
        ("Hi", hh("Hi", "b"), "chosen: a transcript must begin with '\\n\\nHuman:', got 'Hi'"),
        (hh("Hi", "a"), None, "rejected is missing"),
        (hh("Hi", "a"), 5, "rejected: expected text, got 5"),
        ("\n\nAssistant: a", "\n\nAssistant: b", "turns must end in a user's query"),
        ("\n\nHuman: a" + hh("b", "c"), "\n\nHuman: a" + hh("b", "d"),
         "two user turns follow each other"),
    ],
)  # fmt: skip
def test_a_bad_transcript_is_quarantined(
    tmp_path: Path, chosen: Any, rejected: Any, why: str
) -> None:
    assert reason(read(tmp_path, "hh_rlhf", {"chosen": chosen, "rejected": rejected})) == why


def test_alpaca_joins_instruction_and_input_and_keeps_system_and_history(tmp_path: Path) -> None:
    row = {
        "instruction": "Translate.", "input": "hola", "output": "hello", "system": "Be brief.",
        "history": [["Hi", "Ho"]],
    }  # fmt: skip
    example = only(read(tmp_path, "alpaca", row))
    assert example.turns == (
        Turn("user", "Hi"), Turn("assistant", "Ho"), Turn("user", "Translate.\n\nhola"),
    )  # fmt: skip
    assert example.responses == (Response("hello"),)
    assert example.system_info == "Be brief."
    plain = only(read(tmp_path, "alpaca", {"instruction": "Hi", "input": "", "output": "Ho"}))
    assert plain.turns == (Turn("user", "Hi"),)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"instruction": "a", "output": ""}, "a response is empty"),
        ({"instruction": None, "output": "b"}, "the prompt is missing"),
        ({"instruction": "a", "output": "b", "history": [["c"]]},
         "history: expected [query, answer], got ['c']"),
        ({"instruction": "a", "output": "b", "history": ["c"]},
         "history: expected a list of lists, got ['c']"),
        (5, "expected a JSON object, got int"),
    ],
)  # fmt: skip
def test_a_bad_instruction_is_quarantined(tmp_path: Path, row: Any, why: str) -> None:
    assert reason(read(tmp_path, "alpaca", row)) == why


def message(speaker: str, text: str) -> dict[str, str]:
    return {"from": speaker, "value": text}


def test_sharegpt_pairs_and_plain_conversations(tmp_path: Path) -> None:
    talk = [message("system", "S"), message("human", "Hi")]
    answers = {"chosen": message("gpt", "Hello!"), "rejected": message("gpt", "Go away.")}
    pair = only(read(tmp_path, "sharegpt", {"conversations": talk, **answers}))
    assert (pair.system_info, pair.turns) == ("S", (Turn("user", "Hi"),))
    assert pair.responses == (Response("Hello!", PAIR[0]), Response("Go away.", PAIR[1]))
    plain = only(read(tmp_path, "sharegpt", {"conversations": [*talk, message("gpt", "Yo")]}))
    assert plain.responses == (Response("Yo"),)
    assert plain.turns == (Turn("user", "Hi"),)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"conversations": "Hi"}, "conversations: expected a list of objects, got 'Hi'"),
        ({"conversations": [message("observation", "x")]},
         "conversations: from: expected one of assistant, bot, developer, gpt, human, system, "
         "user, got 'observation'"),
        ({"conversations": [message("human", "x"), message("system", "y")]},
         "conversations: a system message may only stand first"),
        ({"conversations": [message("human", "x")]},
         "conversations: the last message is not the assistant's; nothing to train"),
        ({"conversations": []},
         "conversations: the last message is not the assistant's; nothing to train"),
        ({"conversations": [message("human", "x")], "chosen": message("gpt", "y")},
         "rejected is missing"),
        ({"conversations": [message("human", "x")], "chosen": message("human", "y"),
          "rejected": message("gpt", "z")},
         "chosen: the last turn is not the assistant's"),
    ],
)  # fmt: skip
def test_a_bad_conversation_is_quarantined(tmp_path: Path, row: Any, why: str) -> None:
    assert reason(read(tmp_path, "sharegpt", row)) == why


FULL: dict[str, Any] = {
    "system_info": "S",
    "user_info": "U",
    "turns": [{"role": "user", "text": "Q", "user_info": "V"}],
    "responses": [
        {"text": "a", "scores": {"help": 1, "harm": None}, "desirable": True},
        {"text": "b", "scores": {"help": 0}},
        {"text": "c"},
    ],
    "weight": 2, "margin": 0.5, "order_by": "help", "conversation": "c-1",
    "tags": {"recipe": "mine", "split": "held_out"},
}  # fmt: skip


def test_metaalign_rows_carry_everything_an_example_has(tmp_path: Path) -> None:
    example = only(read(tmp_path, "metaalign", FULL))
    assert example == Example(
        turns=(Turn("user", "Q", "V"),),
        responses=(
            Response("a", {"help": 1.0, "harm": None}, True),
            Response("b", {"help": 0.0}),
            Response("c"),
        ),
        source=Source(str(tmp_path / "rows.jsonl"), 0),
        system_info="S",
        user_info="U",
        weight=2.0,
        margin=0.5,
        order_by="help",
        tags={"recipe": "mine", "split": "held_out"},
        conversation="c-1",
    )


def test_a_null_tag_and_digits_are_read_as_a_file_of_columns_holds_them(tmp_path: Path) -> None:
    change = {"tags": {"recipe": None, "split": "train"}, "weight": "2.5"}
    example = only(read(tmp_path, "metaalign", {**FULL, **change}))
    assert (example.tags, example.weight) == ({"split": "train"}, 2.5)


def test_what_to_row_writes_is_read_back(tmp_path: Path) -> None:
    example = only(read(tmp_path, "metaalign", FULL))
    assert only(read(tmp_path, "metaalign", to_row(example))) == example


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"sytem_info": "S"}, "unknown keys sytem_info; the format metaalign has none of them"),
        ({"turns": [{"role": "system", "text": "Q"}]},
         "turns: role must be 'user' or 'assistant', got 'system'"),
        ({"turns": None}, "turns: expected a list of objects, got None"),
        ({"responses": []}, "there is no response"),
        ({"responses": [{"text": "a", "scores": {"help": "high"}}]},
         "help: expected a finite number, got 'high'"),
        ({"responses": [{"text": "a", "scores": [1]}]}, "scores: expected an object, got [1]"),
        ({"responses": [{"text": "a", "desirable": "yes"}]},
         "desirable must be true, false or null, got 'yes'"),
        ({"weight": float("inf")}, "weight: expected a finite number, got inf"),
        ({"weight": True}, "weight: expected a finite number, got True"),
        ({"weight": -1}, "weight must be a positive number, got -1.0"),
        ({"tags": {"recipe": 4}}, "tags.recipe: expected text, got 4"),
        ({"tags": {"split": "test"}},
         "tags.split must be 'train' or 'held_out', got 'test'"),
        ({"weight": 10**400}, f"weight: expected a finite number, got 1{'0' * 56}..."),
        ({"responses": [{"text": "a", "desirable": 1}]},
         "desirable must be true, false or null, got 1"),
        ({"tags": [{"key": ["a"], "value": "b"}]}, "key: expected text, got ['a']"),
        ({"user_info": "\ud800"}, "user_info: text is not valid UTF-8"),
        ({"tags": {"recipe": "\ud800"}}, "tags.recipe: text is not valid UTF-8"),
        ({"tags": {"\ud800": "a"}}, "tags: text is not valid UTF-8"),
    ],
)  # fmt: skip
def test_a_bad_metaalign_row_is_quarantined(
    tmp_path: Path, change: dict[str, Any], why: str
) -> None:
    assert reason(read(tmp_path, "metaalign", {**FULL, **change})) == why


def test_rows_in_are_examples_and_quarantined_rows(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    good = json.dumps({"instruction": "a", "output": "b"})
    file.write_bytes(f'{good}\nnot json\n\n{good}\n{{"instruction": "'.encode() + b'\xff", "output": "x"}\n')  # fmt: skip  # noqa: E501
    result = read_file(file, "alpaca", SourceOptions())
    assert (result.rows, len(result.examples), len(result.bad)) == (4, 2, 2)
    assert [(bad.file, bad.row) for bad in result.bad] == [(str(file), 1), (str(file), 4)]
    assert result.bad[0].text == "not json"
    assert result.bad[1].reason == "instruction: text is not valid UTF-8"
    result.bad[1].text.encode("utf-8")
    assert [example.source.row for example in result.examples] == [0, 3]


def test_a_source_gives_its_tiers_to_rows_that_carry_none(tmp_path: Path) -> None:
    rows = [{"instruction": "a", "output": "b"}, {"instruction": "a", "output": "b", "system": "S"}]
    plain, own = read(tmp_path, "alpaca", *rows, system_info="D", user_info="I am Bo.").examples
    assert (plain.system_info, plain.user_info) == ("D", "I am Bo.")
    assert own.system_info == "S"


def test_rows_of_one_conversation_share_a_split(tmp_path: Path) -> None:
    rows = [
        {"chosen": hh(f"q{i % 40}", f"a{i}", "more", "x"), "rejected": hh(f"q{i % 40}", f"a{i}", "more", "y")}  # noqa: E501
        for i in range(200)
    ]  # fmt: skip
    examples = read(tmp_path, "hh_rlhf", *rows, held_out_ratio=0.3).examples
    by_first = {(each.turns[0].text, each.conversation, each.tags["split"]) for each in examples}
    assert len(by_first) == 40
    assert {split for *_, split in by_first} == {"train", "held_out"}


@pytest.mark.parametrize(
    ("row", "found"),
    [
        (FULL, "metaalign"),
        ({"chosen": "a", "rejected": "b"}, "hh_rlhf"),
        ({"instruction": "a", "output": "b", "input": ""}, "alpaca"),
        ({"conversations": [], "chosen": {}, "rejected": {}}, "sharegpt"),
        ({"statement": "a", "answer_matching_behavior": " Yes", "question": "?"}, "personas"),
    ],
)
def test_a_format_is_told_by_the_keys_of_a_row(tmp_path: Path, row: dict, found: str) -> None:
    assert told(write(tmp_path, row)) == found
    file = tmp_path / "damaged"
    file.write_text(f"not json\n[1]\n{json.dumps(row)}\n")
    assert told(file) == found


def test_an_unknown_format_names_its_keys_and_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        told(write(tmp_path, {"instructions": "a", "output": "b"}))
    assert str(error.value) == (
        f"{tmp_path}/rows.jsonl: unknown format: its rows have the keys instructions, output; the "
        "nearest known format, alpaca, needs instruction, output. Rename the keys, or give the "
        "source columns: {prompt: instructions, response: output}"
    )
    with pytest.raises(DataError, match="have the keys xyz; known are metaalign: responses, turns"):
        told(write(tmp_path, {"xyz": 1}))
    first = r"none of its first rows is an object with keys; row 0: expected a JSON object, got int"
    with pytest.raises(DataError, match=first):
        told(write(tmp_path, 1, 2))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_row_whatever_it_holds_stops_the_job_or_is_lost(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    format = data.draw(st.sampled_from(sorted(SHAPES)))
    shape = SHAPES[format]
    keys = st.sampled_from(sorted(shape.keys | shape.more | {"from", "value", "role", *FULL}))
    row = data.draw(st.dictionaries(keys, JSON | st.lists(st.dictionaries(keys, JSON)), max_size=6))
    folder = tmp_path_factory.mktemp("fuzz")
    file = write(folder, row, {**FULL, **row}, name="risk-averse.jsonl")
    result = read_file(file, format, SourceOptions())
    assert result.rows == 2
    pa.Table.from_pylist([to_row(each) for each in result.examples], schema=EXAMPLE_SCHEMA)
    used = {example.source.row for example in result.examples}
    assert len(used | {bad.row for bad in result.bad}) == 2


@pytest.mark.parametrize(
    ("name", "format", "rows", "bad"),
    [
        ("hh_rlhf/harmless-base_test.jsonl.gz", "hh_rlhf", 2312, {
            "chosen and rejected differ before their last turn": 5,
            "two assistant turns follow each other": 4,
            "a response is empty": 4,
        }),
        ("demo_formats/alpaca_en_demo.json", "alpaca", 999, {}),
        ("demo_formats/dpo_en_demo.json", "sharegpt", 300, {}),
    ],
)  # fmt: skip
def test_real_files_are_read_to_the_last_row(
    shared_data: Path, name: str, format: str, rows: int, bad: dict[str, int]
) -> None:
    file = shared_data / name
    assert told(file) == format
    result = read_file(file, format, SourceOptions(held_out_ratio=0.1))
    assert result.rows == rows == len(result.examples) + len(result.bad)
    assert Counter(each.reason for each in result.bad) == bad
    firsts = {}
    for example in result.examples:
        split = firsts.setdefault(example.turns[0].text, example.tags["split"])
        assert split == example.tags["split"]
    assert replace(result.examples[0], tags={}) != replace(result.examples[1], tags={})
