"""Any table is read by the names of its columns; what no row has, and what is left out, is told."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from pydantic import ValidationError

from metaalign.config import PrepareConfig, load_config
from metaalign.config.prepare import SourceConfig
from metaalign.data.formats import detect_format
from metaalign.data.formats.proposal import propose_columns
from metaalign.data.sources.column_mapping import mapped_records
from metaalign.data.sources.outcome import FileRead
from metaalign.data.sources.records import Record
from metaalign.data.work.parts import plan_parts, read_part, split_parts
from metaalign.errors import ConfigError, DataError
from metaalign.examples import Example

CONVERSATION = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
OTHER = [CONVERSATION[0], {"role": "assistant", "content": "Go."}]


def write(file: Path, rows: list[Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def read(file: Path, columns: dict[str, Any], **source: Any) -> FileRead:
    """What a prepare job reads of a file."""
    config = PrepareConfig.model_validate(
        {
            "storage": str(file.parent),
            "held_out_ratio": 0,
            "sources": [{"path": str(file), "columns": columns, **source}],
        }
    )
    (part,) = split_parts(plan_parts(config), file.parent)
    (result,) = read_part(part)
    assert not result.bad, result.bad
    return result


def only(file: Path, columns: dict[str, Any], **source: Any) -> Example:
    (example,) = read(file, columns, **source).examples
    return example


def said(example: Example) -> tuple[list[str], list[str]]:
    return [turn.text for turn in example.turns], [each.text for each in example.responses]


PAIR = {"question": "Capital of Peru?", "answer_a": "Lima.", "answer_b": "Quito."}
NAMES = {"prompt": "question", "chosen": "answer_a", "rejected": "answer_b"}


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_a_pair_of_any_table_is_a_pair(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist([PAIR]), file)
    elif kind == "csv":
        file.write_text(f"{','.join(PAIR)}\n{','.join(PAIR.values())}\n")
    else:
        file.write_text(json.dumps([PAIR] if kind == "json" else PAIR))
    example = only(file, NAMES)
    assert said(example) == (["Capital of Peru?"], ["Lima.", "Quito."])
    assert [each.scores for each in example.responses] == [{"preference": 1.0}, {"preference": 0.0}]
    assert example.source.row == (1 if kind == "csv" else 0)


def test_dots_lead_into_objects_and_numbers_into_lists(tmp_path: Path) -> None:
    row = {"data": {"q": {"text": "Hi"}}, "answers": [{"text": "no"}, {"text": "Hello!"}], "a.b": 2}
    columns = {"prompt": "data.q.text", "response": "answers.1.text", "weight": "a.b"}
    example = only(write(tmp_path / "rows", [row]), columns)
    assert (said(example), example.weight) == ((["Hi"], ["Hello!"]), 2.0)


@pytest.mark.parametrize(
    ("row", "columns", "wanted"),
    [
        ({"q": "Hi"}, {"prompt": "q"}, (["Hi"], [])),
        ({"q": "Hi", "a": "Hello!"}, {"prompt": "q", "response": "a"}, (["Hi"], ["Hello!"])),
        ({"talk": CONVERSATION}, {"messages": "talk"}, (["Hi"], ["Hello!"])),
        (
            {"good": CONVERSATION, "bad": OTHER},
            {"chosen": "good", "rejected": "bad"},
            (["Hi"], ["Hello!", "Go."]),
        ),
        (
            {"q": CONVERSATION[:1], "good": "Hello!", "bad": OTHER[1:]},
            {"prompt": "q", "chosen": "good", "rejected": "bad"},
            (["Hi"], ["Hello!", "Go."]),
        ),
    ],
    ids=["prompt", "answer", "messages", "conversations", "mixed"],
)
def test_every_shape_can_be_named(
    tmp_path: Path, row: dict[str, Any], columns: dict[str, str], wanted: Any
) -> None:
    source = {} if "response" in columns or len(wanted[1]) else {"format": "prompts"}
    assert said(only(write(tmp_path / "rows", [row]), columns, **source)) == wanted


def test_answers_in_columns_take_their_scores_with_them(tmp_path: Path) -> None:
    rows = [
        {"q": "Hi", "a1": "bad", "a2": "good", "a3": None, "s1": 1, "s2": 4.5, "s3": None},
        {"q": "Ho", "a1": "x", "a2": "y", "a3": "z", "s1": 3, "s2": 2, "s3": 1},
    ]
    columns = {"prompt": "q", "responses": ["a1", "a2", "a3"], "scores": ["s1", "s2", "s3"]}
    first, second = read(write(tmp_path / "rows", rows), columns).examples
    assert {each.text: each.scores for each in first.responses} == {
        "bad": {"overall": 1.0},
        "good": {"overall": 4.5},
    }
    assert len(second.responses) == 3
    listed = write(tmp_path / "listed", [{"q": "Hi", "all": ["bad", "good"], "marks": [1, 4.5]}])
    example = only(listed, {"prompt": "q", "responses": "all", "scores": "marks"})
    assert {each.text: each.scores for each in example.responses} == {
        each.text: each.scores for each in first.responses
    }


def test_tiers_labels_and_ratings_are_named_too(tmp_path: Path) -> None:
    row = {"q": "Hi", "a": "Hello!", "ops": "Be brief.", "who": "I am Ana.", "liked": 0}
    columns = {"prompt": "q", "response": "a", "label": "liked"}
    tiers = {"system_info": "ops", "user_info": "who"}
    example = only(write(tmp_path / "rows", [row]), columns | tiers, user_info="Default.")
    assert (example.system_info, example.user_info) == ("Be brief.", "I am Ana.")
    assert example.responses[0].desirable is False
    row = {**PAIR, "good": 9, "poor": 2, "gap": 7}
    ratings = {"score_chosen": "good", "score_rejected": "poor", "margin": "gap"}
    example = only(write(tmp_path / "rows", [row]), NAMES | ratings)
    assert [each.scores["rating"] for each in example.responses] == [9.0, 2.0]
    assert example.margin == 7.0


def test_a_column_of_a_known_name_needs_no_line_and_others_are_told(tmp_path: Path) -> None:
    row = {"question": "Hi", "instruction": "x", "chosen": "a", "rejected": "b", "id": 7, "n": None}
    result = read(write(tmp_path / "rows", [row, row]), {"prompt": "question"})
    assert said(result.examples[0]) == (["Hi"], ["a", "b"])
    assert result.ignored == {"instruction": 2, "id": 2}


def test_a_column_whose_name_another_one_takes_is_told(tmp_path: Path) -> None:
    row = {**PAIR, "prompt": "an address", "chosen": "answer_b"}
    result = read(write(tmp_path / "rows", [row]), NAMES)
    assert said(result.examples[0]) == (["Capital of Peru?"], ["Lima.", "Quito."])
    assert result.ignored == {
        "prompt (columns.prompt is 'question')": 1,
        "chosen (columns.chosen is 'answer_a')": 1,
    }


def test_names_may_be_swapped(tmp_path: Path) -> None:
    row = {"prompt": "Hi", "chosen": "worse", "rejected": "better"}
    example = only(write(tmp_path / "rows", [row]), {"chosen": "rejected", "rejected": "chosen"})
    assert said(example) == (["Hi"], ["better", "worse"])


def test_a_column_that_no_row_has_is_an_error_before_any_task(tmp_path: Path) -> None:
    file = write(tmp_path / "rows", [{**PAIR, "meta": {"rank": [1, 2]}}] * 3)
    with pytest.raises(DataError) as error:
        read(file, {**NAMES, "rejected": "answer_c", "weight": "meta.rnk"})
    assert str(error.value) == (
        f"{file}: no row has the column 'answer_c' that columns.rejected names (did you mean "
        "answer_b?); no row has the column 'meta.rnk' that columns.weight names (did you mean "
        "meta.rank?); its columns are question, answer_a, answer_b, meta, meta.rank, meta.rank.0, "
        "meta.rank.1"
    )


def test_a_column_that_only_a_late_row_has_is_there(tmp_path: Path) -> None:
    rows = [*[PAIR] * 300, {**PAIR, "who": "I am Ana."}]
    result = read(write(tmp_path / "rows", rows[200:]), NAMES | {"user_info": "who"})
    assert [example.user_info for example in result.examples[-2:]] == ["", "I am Ana."]


def test_a_row_that_lacks_a_column_is_a_bad_row(tmp_path: Path) -> None:
    file = write(tmp_path / "rows", [PAIR, {"question": "Hi", "answer_a": "x"}, "text"])
    config = {"storage": str(tmp_path), "sources": [{"path": str(file), "columns": NAMES}]}
    (part,) = split_parts(plan_parts(PrepareConfig.model_validate(config)), tmp_path)
    (result,) = read_part(part)
    assert (result.used, [bad.row for bad in result.bad]) == (1, [1, 2])
    assert "rejected" in result.bad[0].reason


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ({"columns": {"promt": "a"}}, "sources.0.columns.promt: unknown setting, got 'a' (did you "
         "mean sources.0.columns.prompt?)"),
        ({"columns": {"prompt": "a", "chosen": "a"}}, "prompt and chosen both take the column 'a'"),
        ({"columns": {"responses": ["a", "b"], "scores": ["s"]}},
         "responses takes 2 columns and scores 1; give each answer one score"),
        ({"columns": {"responses": ["a"], "scores": ["s", "t"]}},
         "responses takes 1 columns and scores 2; give each answer one score"),
        ({"columns": {"response": "a", "scores": "s"}},
         "scores are of several answers, and only response is named; name the answers in "
         "responses"),
        ({"columns": {"prompt": "q", "chosen": "a", "rejected": "b", "scores": ["s", "t"]}},
         "scores are of several answers, and only chosen, rejected are named; name the answers in "
         "responses"),
        ({"columns": {}}, "give at least one"),
        ({"columns": {"prompt": ""}}, "at least 1 character"),
        ({"columns": {"prompt": "a"}, "format": "alpaca"}, "format: alpaca has columns of its own"),
    ],
)  # fmt: skip
def test_columns_that_cannot_be_meant_are_refused(
    tmp_path: Path, source: dict[str, Any], why: str
) -> None:
    file = tmp_path / "prepare.yaml"
    file.write_text(yaml.safe_dump({"storage": "/s", "sources": [{"path": "/a", **source}]}))
    with pytest.raises(ConfigError) as error:
        load_config(PrepareConfig, file)
    assert why in str(error.value)


def test_the_command_line_names_columns(tmp_path: Path) -> None:
    file = tmp_path / "prepare.yaml"
    file.write_text(yaml.safe_dump({"storage": "/s", "sources": [{"path": "/a"}]}))
    overrides = ["sources.0.columns.prompt=question", "sources.0.columns.responses=[a, b]"]
    source = load_config(PrepareConfig, file, overrides).sources[0]
    assert source.columns is not None
    assert source.columns.named() == {"prompt": "question", "responses": ("a", "b")}


@pytest.mark.parametrize("late", [0, 250])
def test_a_data_set_of_the_library_can_be_named(tmp_path: Path, late: int) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [{**PAIR, "who": []}] * late + [{**PAIR, "who": ["I am Ana."]}]
    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
    settings = {"storage": str(tmp_path), "held_out_ratio": 0}
    columns = {**NAMES, "user_info": "who.0"}
    sources = [{"dataset": {"name": str(folder)}, "columns": columns}]
    config = PrepareConfig.model_validate({**settings, "sources": sources})
    (part,) = split_parts(plan_parts(config), tmp_path)
    examples = [example for result in read_part(part) for example in result.examples]
    assert said(examples[-1]) == (["Capital of Peru?"], ["Lima.", "Quito."])
    assert [each.user_info for each in examples] == [""] * late + ["I am Ana."]
    sources[0]["columns"] = {**columns, "user_info": "who.1"}
    with pytest.raises(DataError, match=r"no row has the column 'who\.1'"):
        plan_parts(PrepareConfig.model_validate({**settings, "sources": sources}))


@pytest.mark.parametrize(
    ("row", "proposed"),
    [
        ({**PAIR, "id": 7},
         "columns: {prompt: question, chosen: answer_a, rejected: answer_b} where answer_a is the "
         "better answer (not used: id)"),
        ({"ask": "a", "better": "b", "worse": "c", "margin": 2},
         "columns: {prompt: ask, chosen: better, rejected: worse, margin: margin}"),
        ({"user_message": "a", "bot_reply": "b"},
         "columns: {prompt: user_message, response: bot_reply}"),
        ({"persona": "I am Ana", "ask": "a", "replyText": "b"},
         "columns: {prompt: ask, response: replyText, user_info: persona}"),
        ({"data": {"task": "a", "good": "b", "bad": "c"}, "meta": {"id": 1}},
         "columns: {prompt: data.task, chosen: data.good, rejected: data.bad} (not used: meta)"),
        ({"winning": CONVERSATION, "losing": OTHER},
         "columns: {chosen: winning, rejected: losing}"),
        ({"dialog": CONVERSATION, "liked": True}, "columns: {messages: dialog, label: liked}"),
        ({"ask": "Q", "out1": "a", "out2": "b", "out3": "c", "mark1": 1, "mark2": 3, "mark3": 2},
         "columns: {prompt: ask, responses: [out1, out2, out3], scores: [mark1, mark2, mark3]} "
         "where a higher score is better"),
        ({**PAIR, "better": "answer_b"},
         "columns: {prompt: question, chosen: answer_b, rejected: answer_a} only if answer_b is "
         "the better answer in every row; the column better, here 'answer_b', seems to say which "
         "one is (not used: better)"),
        ({**PAIR, "choice": 0},
         "columns: {prompt: question, chosen: answer_a, rejected: answer_b} only if answer_a is "
         "the better answer in every row; the column choice, here 0, seems to say which one is "
         "(not used: choice)"),
        ({"foo": "a", "bar: x": "b"},
         'columns: {prompt: foo, response: "bar: x"} if these two are prompt and answer'),
        ({"foo": 1, "bar": "b"}, ""),
    ],
)  # fmt: skip
def test_an_unknown_row_gets_a_line_to_paste(row: dict[str, Any], proposed: str) -> None:
    assert propose_columns(row) == proposed
    if not proposed:
        return
    with pytest.raises(DataError, match="unknown format") as error:
        detect_format([Record(0, row)], "rows")
    assert str(error.value).endswith(f"or give the source {proposed}")
    line = proposed[: proposed.index("}") + 1]
    source = SourceConfig.model_validate({"path": "/a", **yaml.safe_load(line)})
    (record,) = mapped_records([Record(0, row)], source.columns)
    assert detect_format([record], "rows") in (
        "pairs",
        "hh_rlhf",
        "completion",
        "messages",
        "rated",
    )


@pytest.mark.parametrize(
    ("name", "is_score"),
    [("rank", False), ("toxicity", False), ("id", False), ("tokens", False), ("loss_score", False),
     ("gap", False), ("score", True), ("helpfulness_rating", True), ("overallScore", True)],
)  # fmt: skip
def test_only_numbers_of_which_more_is_better_are_proposed_as_scores(
    name: str, is_score: bool
) -> None:
    answers = {"ask": "Q", "answer_1": "a", "answer_2": "b"}
    proposed = propose_columns({**answers, f"{name}_1": 1, f"{name}_2": 2})
    assert ("scores" in proposed) == is_score
    assert is_score or proposed.endswith(f"(not used: {name}_1, {name}_2)")


def test_settings_of_columns_are_frozen() -> None:
    source = SourceConfig.model_validate({"path": "/a", "columns": NAMES})
    with pytest.raises(ValidationError, match="frozen"):
        source.columns = None  # pyright: ignore
