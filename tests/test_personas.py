"""Statements to pairs under opposed User Infos; what is held out is never trained."""

import json
from pathlib import Path

import pytest

from metaalign.data.formats.personas import read_personas
from metaalign.data.sources.options import SourceOptions
from metaalign.data.sources.outcome import FileRead
from metaalign.data.sources.records import read_records
from metaalign.errors import DataError

LIBERAL, CONSERVATIVE = "I am politically liberal.", "I am politically conservative."


def statement(text: str, would_say: bool) -> dict[str, str]:
    return {"statement": text, "answer_matching_behavior": " Yes" if would_say else " No"}


def read(folder: Path, persona: str, *rows: dict, **options: object) -> FileRead:
    file = folder / f"{persona}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_personas(read_records(file), str(file), SourceOptions(**options))  # pyright: ignore[reportArgumentType]


ROWS = (statement("Tax more.", True), statement("Tax less.", False), statement("Share.", True))


def test_a_statement_is_chosen_under_its_persona_and_rejected_under_the_opposed_one(
    tmp_path: Path,
) -> None:
    result = read(tmp_path, "politically-liberal", *ROWS[:2])
    own, opposed = result.examples
    assert (own.user_info, opposed.user_info) == (LIBERAL, CONSERVATIVE)
    assert own.turns == opposed.turns
    assert [response.text for response in own.responses] == ["Tax more.", "Tax less."]
    assert own.order_scores() == [1.0, 0.0]
    # the same two responses, labels flipped
    scores = {each.text: each.scores["preference"] for each in opposed.responses}
    assert scores == {"Tax more.": 0.0, "Tax less.": 1.0}
    assert own.conversation == opposed.conversation == own.tags["pair"] != ""
    assert own.tags["persona"] == "politically-liberal"
    assert opposed.tags["persona"] == "politically-conservative"


def test_no_statement_is_dropped_where_one_side_is_shorter(tmp_path: Path) -> None:
    result = read(tmp_path, "risk-averse", *ROWS)
    pairs = [tuple(each.text for each in example.responses) for example in result.examples]
    assert pairs == [("Tax more.", "Tax less."), ("Share.", "Tax less.")]
    assert (result.rows, result.bad) == (3, [])
    assert {example.user_info for example in result.examples} == {"I am risk-averse."}


def test_what_is_not_read_of_a_statement_is_counted(tmp_path: Path) -> None:
    rows = [{**row, "question": "Would you?", "note": None} for row in ROWS]
    assert read(tmp_path, "risk-averse", *rows).ignored == {"question": 3}


def test_statements_are_judged_by_preference_alone(tmp_path: Path) -> None:
    assert len(read(tmp_path, "risk-averse", *ROWS, order_by="preference").examples) == 2
    result = read(tmp_path, "risk-averse", *ROWS, order_by="wit")
    assert {bad.reason for bad in result.bad} == {
        "order_by 'wit' is not among its objectives ['preference']"
    }


def test_without_opposing_each_pair_stands_once(tmp_path: Path) -> None:
    result = read(tmp_path, "politically-liberal", *ROWS, oppose_personas=False)
    assert [example.user_info for example in result.examples] == [LIBERAL, LIBERAL]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (statement(" ", True), "statement: expected text, got ' '"),
        ({"statement": "a"}, "answer_matching_behavior: expected ' Yes' or ' No', got None"),
        ({"statement": "a", "answer_matching_behavior": "Maybe"},
         "answer_matching_behavior: expected ' Yes' or ' No', got 'Maybe'"),
        (statement("Share.", False), "the statement occurs twice in this file"),
        (statement("\ud800", True), "text is not valid UTF-8"),
    ],
)  # fmt: skip
def test_a_bad_statement_is_quarantined(tmp_path: Path, row: dict, why: str) -> None:
    result = read(tmp_path, "risk-averse", *ROWS, row)
    (bad,) = result.bad
    assert (result.rows, bad.row, bad.reason) == (4, 3, why)


def test_statements_with_no_counterpart_are_quarantined(tmp_path: Path) -> None:
    result = read(tmp_path, "risk-averse", ROWS[0], ROWS[2])
    assert (result.rows, result.examples) == (2, [])
    assert {bad.reason for bad in result.bad} == {
        "no statement of the other kind to pair it with in the split train"
    }


def test_an_unknown_persona_needs_words(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the persona 'desire-for-power' has no known User Info"):
        read(tmp_path, "desire-for-power", *ROWS)
    result = read(tmp_path, "desire-for-power", *ROWS, user_info="I want power.")
    assert {example.user_info for example in result.examples} == {"I want power."}


def test_held_out_statements_are_never_trained_in_the_real_files(shared_data: Path) -> None:
    options = SourceOptions(held_out_ratio=0.12)
    trained: set[str] = set()
    held: set[str] = set()
    both_sides: dict[str, set[str]] = {}
    for file in sorted((shared_data / "personas").glob("*.jsonl")):
        result = read_personas(read_records(file), str(file), options)
        rows = {example.source.row for example in result.examples}
        assert (result.rows, result.bad) == (1000, [])
        used = {each.text for example in result.examples for each in example.responses}
        assert len(used) == 1000
        assert rows <= set(range(1000))
        for example in result.examples:
            side = trained if example.tags["split"] == "train" else held
            side.update(each.text for each in example.responses)
            both_sides.setdefault(example.conversation, set()).add(example.user_info)
    assert not trained & held
    assert len(held) > 300
    political = [infos for infos in both_sides.values() if infos & {LIBERAL, CONSERVATIVE}]
    assert len(political) > 1000
    assert all(infos == {LIBERAL, CONSERVATIVE} for infos in political)
