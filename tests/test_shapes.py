"""Shapes of rows: golden examples of each, what a label or a rating means, what is refused."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from metaalign.config.prepare import SourceConfig
from metaalign.data.formats import SHAPES, detect_format, read_rows
from metaalign.data.reading import FileRead, Reading
from metaalign.data.records import Record, read_records
from metaalign.errors import DataError

GOLDEN = Path(__file__).parent / "golden" / "formats"


def read(format: str, *rows: Any, **reading: Any) -> FileRead:
    records = [Record(number, row) for number, row in enumerate(rows)]
    return read_rows(records, "rows.jsonl", format, Reading(**reading))


def reason(format: str, row: Any, **reading: Any) -> str:
    (bad,) = read(format, row, **reading).bad
    return bad.reason


def message(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def test_every_format_but_the_personas_has_golden_rows_and_can_be_asked_for() -> None:
    assert {file.stem for file in GOLDEN.glob("*.json")} == set(SHAPES) - {"personas"}
    for format in SHAPES:
        SourceConfig.model_validate({"path": "/a", "format": format})


@pytest.mark.parametrize("file", sorted(GOLDEN.glob("*.json")), ids=lambda file: file.stem)
def test_golden_rows_become_these_examples_and_tell_their_format(file: Path) -> None:
    for case in json.loads(file.read_text(encoding="utf-8")):
        assert detect_format([Record(0, case["row"])], "rows") == file.stem
        result = read(file.stem, case["row"])
        assert [example.to_row() for example in result.examples] == case["examples"]
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
         "x: expected a rating, got 'high'"),
        ("truthfulqa", {"Question": "Q", "Best Answer": "Yes.", "Correct Answers": "",
                        "Incorrect Answers": "no; yes"},
         "the answer 'yes' is called both correct and incorrect"),
    ],
)  # fmt: skip
def test_a_row_that_leaves_its_meaning_open_is_refused(format: str, row: Any, why: str) -> None:
    assert reason(format, row) == why


def ranked(*labels: int) -> dict[str, Any]:
    answers = {f"prediction {n}": f"answer {n}" for n in range(1, 5)}
    return {"question": "Q", "preference": list(labels), "feedback": {}, **answers}


def test_labels_of_pairs_become_the_ranking_that_reproduces_them() -> None:
    # 1 beats all, 2 ties with 3, both beat 4.
    (example,) = read("fine_grained", ranked(1, 1, 1, 0, 1, 1)).examples
    assert example.order_scores() == [3.0, 1.0, 1.0, 0.0]
    # 4 beats all, 1 beats 2, 3; 3 beats 2.
    (example,) = read("fine_grained", ranked(1, 1, 2, 2, 2, 2)).examples
    assert example.order_scores() == [2.0, 0.0, 1.0, 3.0]


@pytest.mark.parametrize("labels", [(1, 2, 1, 1, 1, 1), (0, 1, 0, 0, 0, 0), (0, 0, 1, 0, 1, 0)])
def test_labels_that_no_ranking_reproduces_are_intransitive(labels: tuple[int, ...]) -> None:
    # 1 > 2 > 3 > 1; 1 = 2 = 3 and yet 1 > 3; 3 = 1 > 4 = 3.
    assert reason("fine_grained", ranked(*labels)).startswith("intransitive")


def test_an_error_whose_type_no_objective_is_known_for_is_refused() -> None:
    feedback = {"errors": [{"error type": "Rude"}], "corrected-prediction": "better"}
    row = {**ranked(0, 0, 0, 0, 0, 0), "feedback": feedback}
    assert reason("fine_grained", row) == (
        "feedback: no objective is known for errors of type 'Rude'"
    )


def test_a_source_says_which_rating_orders_and_which_turns_are_trained() -> None:
    rows = json.loads((GOLDEN / "rated.json").read_text(encoding="utf-8"))
    (example,) = read("rated", rows[0]["row"], order_by="honesty").examples
    assert example.order_scores() == [None, 4.0]
    assert reason("rated", rows[0]["row"], order_by="wit").startswith("order_by 'wit' is not among")
    talk = [message(role, f"{role} {n}") for n in range(3) for role in ("user", "assistant")]
    every = read("messages", {"messages": talk}).examples
    assert [len(example.turns) for example in every] == [1, 3, 5]
    assert len({example.conversation for example in every}) == 1
    last = read("messages", {"messages": talk}, assistant_turns="last").examples
    assert last == every[-1:]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "response_1": "a", "response_2": "b", "preference_strength": 2},
        {"prompt": "Hi", "response_0": "a", "response_1": "b", "better_response_id": 0},
        {"question": "Hi", "answers": {"text": ["a"]}, "context": "b"},
    ],
)
def test_a_prompt_beside_an_answer_under_an_unknown_key_is_no_bare_prompt(row: Any) -> None:
    with pytest.raises(DataError, match="unknown format"):
        detect_format([Record(0, row)], "rows")


def test_a_message_whose_weight_is_null_is_trained() -> None:
    talk = [message("user", "Hi", weight=None), message("assistant", "Hello!", weight=None)]
    assert len(read("messages", {"messages": talk}).examples) == 1


def test_what_a_format_does_not_read_is_counted() -> None:
    rows = [{"instruction": "a", "output": "b", "mood": "c", "note": None}] * 3
    assert read("alpaca", *rows).ignored == {"mood": 3}


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
    result = read_rows(read_records(file), str(file), format, Reading())
    assert result.rows == rows == result.used + len(result.bad)
    assert Counter(len(example.responses) for example in result.examples) == answers
    assert Counter(each.reason for each in result.bad) == bad


def test_truthfulqa_gives_the_best_answer_first_and_true_ones_over_false(shared_data: Path) -> None:
    file = shared_data / "truthfulqa" / "TruthfulQA.csv"
    result = read_rows(read_records(file), str(file), "truthfulqa", Reading())
    assert (result.rows, result.used, len(result.bad)) == (817, 815, 2)
    for example in result.examples:
        scores = example.order_scores()
        assert scores == sorted(scores, reverse=True)  # pyright: ignore[reportArgumentType]
        assert set(scores) == {1.0, 0.0}


def test_a_cell_of_several_lines_comes_through_whole(shared_data: Path) -> None:
    file = shared_data / "metaaligner_samples" / "UltraFeedback_Vicuna-7B.csv"
    text = file.read_bytes().decode("utf-8")
    result = read_rows(read_records(file), str(file), "metaaligner", Reading())
    long = [r.text for e in result.examples for r in e.responses if r.text.count("\n") > 5]
    assert len(long) > 300
    assert all(answer.replace('"', '""') in text for answer in long)
