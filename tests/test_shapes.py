"""Shapes of rows: golden examples of each, how one is told, what is refused or not read of it."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from metaalign.config.prepare import SourceConfig
from metaalign.data.formats import SHAPES, detect_format, read_rows
from metaalign.data.sources.options import SourceOptions
from metaalign.data.sources.records import Record, read_records
from metaalign.errors import DataError
from tests.example_rows import to_row
from tests.rows import ASKED, OTHER, TALK, message, read, reason

GOLDEN = Path(__file__).parent / "golden" / "formats"
HELPSTEER = {"prompt": "Hi", "response": "a", "helpfulness": 4, "correctness": 3, "coherence": 4,
             "complexity": 1, "verbosity": "2"}  # fmt: skip


def test_every_format_but_the_personas_has_golden_rows_and_can_be_asked_for() -> None:
    assert {file.stem for file in GOLDEN.glob("*.json")} == set(SHAPES) - {"personas"}
    for format in SHAPES:
        SourceConfig.model_validate({"path": "/a", "format": format})


@pytest.mark.parametrize("file", sorted(GOLDEN.glob("*.json")), ids=lambda file: file.stem)
def test_golden_rows_become_these_examples_and_tell_their_format(file: Path) -> None:
    for case in json.loads(file.read_text(encoding="utf-8")):
        assert detect_format([Record(0, case["row"])], "rows") == file.stem
        result = read(file.stem, case["row"])
        assert [to_row(example) for example in result.examples] == case["examples"]
        # Parquet fills what a row lacks with nulls.
        nulls = {"chosen": None, "label": None, "turns": None, "weight": None, **case["row"]}
        assert read(file.stem, nulls).examples == result.examples


@pytest.mark.parametrize(
    ("format", "row", "why"),
    [
        ("pairs", {"prompt": "Hi", "chosen": "a", "rejected": None}, "rejected is missing"),
        ("pairs", {"prompt": "Hi", "chosen": [message("user", "Ho"), message("assistant", "a")],
                   "rejected": [message("user", "Ho"), message("assistant", "b")]},
         "the prompt is not among the messages before the last of chosen"),
        ("pairs", {"chosen": [message("user", "Ho"), message("assistant", "a")],
                   "rejected": [message("user", "Hi"), message("assistant", "b")]},
         "chosen and rejected differ before their last turn"),
        ("messages", {"messages": [message("user", "Hi"), message("assistant", "a", weight=0)]},
         "messages: every answer has the weight 0; nothing to train"),
        ("messages", {"messages": [message("user", "Hi"), message("assistant", "a")], "label": 2},
         "label must be true, false or null, got 2"),
        ("messages", {"messages": [message("user", "Hi"), message("tool", "a")]},
         "messages: role: expected one of assistant, bot, developer, gpt, human, system, user, "
         "got 'tool'"),
        ("messages", {"messages": [message("user", [{"type": "image_url"}])]},
         "messages: only text can be trained on, got a part of type 'image_url'"),
        ("rated", {"prompt": "Hi", "completions": ["a", "b"], "labels": [True, False]},
         "several answers without scores or ranks have no order"),
        ("rated", {"prompt": "Hi", "responses": ["a", "b"], "scores": [1]},
         "scores: expected 2 values, one an answer, got 1"),
        ("rated", {"prompt": "Hi", "completions": [
            {"text": "a", "annotations": {"x": 1, "y": 2}}, {"text": "b", "annotations": {}}]},
         "several objectives and no overall score; give order_by one of ['x', 'y']"),
        ("rated", {"prompt": "Hi", "completions": [
            {"text": "a", "annotations": {"x": {"Rating": "high"}}}]},
         "x: expected a finite number, got 'high'"),
        ("truthfulqa", {"Question": "Q", "Best Answer": "Yes.", "Correct Answers": "",
                        "Incorrect Answers": "no; yes"},
         "the answer 'yes' is called both correct and incorrect"),
        ("rated", {"prompt": "Hi", "completions": [
            {"text": "a", "score": None, "annotations": {"x": None}},
            {"text": "b", "score": "N/A"}]},
         "several answers without scores or ranks have no order"),
        ("rated", {"prompt": "Hi", "completions": [{"text": "a", "score": 1},
                                                   {"text": "a", "score": 2}]},
         "the answer 'a' occurs twice with different scores"),
        ("rated", {"prompt": "Hi", "completions": [{"text": "a", "score": 1}], "scores": [2]},
         "scores and the answers themselves both hold scores; keep one of them"),
        ("completion", {"prompt": "Hi", "response": None, "helpfulness": 4}, "response is missing"),
        ("completion", {"prompt": "Hi", "completion": "a", "label": 0.5},
         "label must be true, false or null, got 0.5"),
    ],
)  # fmt: skip
def test_a_row_that_leaves_its_meaning_open_is_refused(format: str, row: Any, why: str) -> None:
    assert reason(format, row) == why


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "response_1": "a", "response_2": "b", "verdict": 2},
        {"prompt": "Hi", "reply_a": "a", "reply_b": "b", "winner": "model_a"},
        {"question": "Hi", "answers": {"text": ["a"]}, "context": "b"},
    ],
)
def test_a_prompt_beside_an_answer_under_an_unknown_key_is_no_bare_prompt(row: Any) -> None:
    with pytest.raises(DataError, match="unknown format"):
        detect_format([Record(0, row)], "rows")


@pytest.mark.parametrize("bare", [{"completion": None}, {}])
def test_an_unanswered_row_does_not_make_an_answered_file_bare_prompts(bare: dict) -> None:
    rows = [{"prompt": "Hi", **bare}, *[{"prompt": "Hi", "completion": str(n)} for n in range(9)]]
    assert detect_format([Record(n, row) for n, row in enumerate(rows)], "rows") == "completion"
    result = read("prompts", *rows)
    assert (result.used, len(result.bad)) == (1, 9)
    assert {bad.reason for bad in result.bad} == {
        "beside the prompt stands completion, which may be an answer; if it is none, "
        "set format=prompts"
    }
    told = read("prompts", *rows, format_is_set=True)
    assert (told.used, len(told.bad), told.ignored) == (10, 0, {"completion": 9})
    assert read("prompts", {"query": "Hi", "context": "there"}).used == 1


@pytest.mark.parametrize(
    ("row", "format"),
    [
        ({"question": "Hi", "answers": ["a", "b"], "answer": "a"}, "completion"),
        ({"prompt": "Hi", "answers": ["a", "b"], "ranks": [1, 2]}, "rated"),
        ({"messages": TALK, "chosen": TALK, "rejected": OTHER}, "pairs"),
        ({"messages": ASKED, "chosen": "a", "rejected": "b"}, "messages"),
        ({"conversation": ASKED, "chosen": TALK, "rejected": OTHER}, "messages"),
    ],
)
def test_rows_that_share_keys_are_told_by_what_stands_under_them(row: Any, format: str) -> None:
    assert detect_format([Record(0, row)], "rows") == format
    assert read(format, row).used == 1


@pytest.mark.parametrize(
    ("row", "near"),
    [
        ({"mesages": []}, "messages, needs messages/conversation (a list)"),
        ({"prompt": "a", "completon": "b"},
         "completion, needs prompt/instruction/question/query/input, "
         "output/completion/response/answer"),
        ({"prompt": "a", "chosn": "b", "rejected": "c"},
         "pairs, needs chosen, rejected, prompt/instruction/question/query/input"),
        ({"prompt": "a", "completions": ["b", "c"]},
         "rated, needs prompt/instruction/question/query/input, "
         "completions/responses/answers/generations (a list of objects, or of texts with scores or "
         "ranks beside it)"),
        ({"conversatons": []}, "sharegpt, needs conversations"),
        ({"promt": "a"}, "prompts, needs prompt/turns"),
    ],
)  # fmt: skip
def test_a_near_miss_names_the_shape_that_was_meant(row: Any, near: str) -> None:
    with pytest.raises(DataError) as error:
        detect_format([Record(0, row)], "rows")
    assert f"; the nearest known format, {near}. Rename" in str(error.value)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("[]", "the file has no rows"),
        ("[{}]", "unknown format: its rows have the keys ; known are metaalign"),
        ("instruction,output\n", "the file has no rows"),
        ('{"a": \n', "with keys; row 0: not JSON: Expecting value.*; expected rows in one of"),
    ],
)
def test_a_file_that_tells_no_format_says_why(tmp_path: Path, content: str, why: str) -> None:
    file = tmp_path / "rows"
    file.write_text(content)
    with pytest.raises(DataError, match=f"rows: .*{why}"):
        detect_format(read_records(file), str(file))


def test_what_a_format_does_not_read_is_counted() -> None:
    rows = [{"instruction": "a", "output": "b", "mood": "c", "note": None}] * 3
    assert read("alpaca", *rows).ignored == {"mood": 3}


@pytest.mark.parametrize(
    ("format", "row", "ignored"),
    [
        ("completion", {"prompt": "a", "response": "b", "helpfulness": 4}, {"helpfulness": 1}),
        ("completion", {**HELPSTEER, "verbosity": "much"},
         dict.fromkeys(["helpfulness", "correctness", "coherence", "complexity", "verbosity"], 1)),
        ("alpaca", {**HELPSTEER, "prompt": None, "response": None, "instruction": "a",
                    "output": "b"}, {}),
        ("sharegpt", {"conversations": ASKED, "chosen": "a", "rejected": "b", "label": True},
         {"label": 1}),
        ("pairs", {"prompt": "Hi", "chosen": "a", "rejected": "b", "score_chosen": 1},
         {"score_chosen": 1}),
        ("messages", {"messages": [message("user", "Hi", name="Ana"),
                                   message("assistant", "a", reasoning_content="Hm.", weight=1)]},
         {"messages.name": 1, "messages.reasoning_content": 1}),
        ("pairs", {"prompt": "Hi", "chosen": message("assistant", "a", thinking="Hm."),
                   "rejected": "b"}, {"chosen.thinking": 1}),
    ],
)  # fmt: skip
def test_what_was_not_read_of_this_row_is_counted(format: str, row: Any, ignored: Any) -> None:
    result = read(format, row)
    assert (result.used, result.ignored) == (1, ignored)


@pytest.mark.parametrize(
    ("name", "format", "rows", "answers", "bad"),
    [
        ("demo_formats/kto_en_demo.json", "messages", 300, {1: 300}, {}),
        ("fine_grained/dev_feedback.json", "fine_grained", 500, {4: 478, 2: 459},
         {"intransitive: no ranking reproduces all six labels": 22}),
        ("metaaligner_samples/UltraFeedback_Vicuna-7B.csv", "metaaligner", 1200, {2: 971},
         {"generated_text is missing": 226, "a response is empty": 1, "goldens is missing": 2}),
        ("metaaligner_samples/HH-RLHF_gpt-3.5-turbo.csv", "metaaligner", 1200, {2: 1194},
         {"goldens is missing": 4, "two assistant turns follow each other": 2}),
        ("ifeval/input_data.jsonl", "prompts", 541, {0: 541}, {}),
        ("mt_bench/mt_bench_question.jsonl", "prompts", 80, {0: 80}, {}),
        ("personas/risk-averse.jsonl", "personas", 1000, {2: 500}, {}),
    ],
)  # fmt: skip
def test_real_files_of_every_shape_are_read_to_the_last_row(
    shared_data: Path, name: str, format: str, rows: int, answers: dict[int, int], bad: dict
) -> None:
    file = shared_data / name
    assert detect_format(read_records(file), str(file)) == format
    result = read_rows(read_records(file), str(file), format, SourceOptions())
    assert result.rows == rows == result.used + len(result.bad)
    assert Counter(len(example.responses) for example in result.examples) == answers
    assert Counter(each.reason for each in result.bad) == bad


def test_a_cell_of_several_lines_comes_through_whole(shared_data: Path) -> None:
    file = shared_data / "metaaligner_samples" / "UltraFeedback_Vicuna-7B.csv"
    text = file.read_bytes().decode("utf-8")
    result = read_rows(read_records(file), str(file), "metaaligner", SourceOptions())
    long = [r.text for e in result.examples for r in e.responses if r.text.count("\n") > 5]
    assert len(long) > 300
    assert all(answer.replace('"', '""') in text for answer in long)
