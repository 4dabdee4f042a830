"""Two numbered answers: every coding as its data set documents it, an unclear one refused."""

from typing import Any

import pytest

from metaalign.data.formats import detect_format
from metaalign.data.sources.records import Record
from metaalign.errors import DataError
from tests.rows import ASKED, OTHER, TALK, message, read, reason

HELPSTEER = {"prompt": "Hi", "response_1": "a", "response_2": "b"}
ARENA = {"prompt": "Hi", "response_a": "a", "response_b": "b"}
FARM = {"instruction": "Hi", "output_1": "a", "output_2": "b"}
PANDALM = {"instruction": "Hi", "response1": "a", "response2": "b"}


def order(format: str, row: dict[str, Any]) -> str:
    """a > b, b > a or a = b."""
    assert detect_format([Record(0, row)], "rows") == format
    (example,) = read(format, row).examples
    assert [response.text for response in example.responses] == ["a", "b"]
    first, second = example.order_scores()
    assert first is not None
    assert second is not None
    return "a > b" if first > second else "b > a" if second > first else "a = b"


@pytest.mark.parametrize(
    ("strength", "told"),
    [(-3, "a > b"), (-1, "a > b"), ("-2", "a > b"), (0, "a = b"), (1, "b > a"), (3.0, "b > a")],
)
def test_below_zero_helpsteer_prefers_the_first_answer(strength: Any, told: str) -> None:
    assert order("helpsteer", {**HELPSTEER, "preference_strength": strength}) == told
    third = {"context": ASKED, "response1": "a", "response2": "b", "overall_preference": strength}
    assert order("helpsteer", third) == told


def test_how_much_better_is_the_score_of_the_better_answer() -> None:
    (example,) = read("helpsteer", {**HELPSTEER, "preference_strength": 2}).examples
    assert example.order_scores() == [0.0, 2.0]


@pytest.mark.parametrize(
    ("winner", "told"),
    [
        ("model_a", "a > b"), ("model_b", "b > a"), ("A", "a > b"), ("b", "b > a"),
        ("response_b", "b > a"), ("Assistant A", "a > b"), ("tie", "a = b"),
    ],
)  # fmt: skip
def test_the_arenas_winner_is_named_by_its_letter(winner: str, told: str) -> None:
    assert order("arena", {**ARENA, "winner": winner}) == told


def test_the_arenas_winner_may_stand_in_three_columns_and_in_conversations() -> None:
    columns = ("winner_model_a", "winner_model_b", "winner_tie")
    for place, told in enumerate(("a > b", "b > a", "a = b")):
        values = {key: int(place == at) for at, key in enumerate(columns)}
        assert order("arena", {**ARENA, **values}) == told
    talks = {"conversation_a": TALK, "conversation_b": OTHER}
    assert order("arena", {**talks, "winner": "model_b"}) == "b > a"


def test_the_arenas_turns_may_be_json_text() -> None:
    row = {"prompt": '["Hi"]', "response_a": '["a"]', "response_b": '["b"]', "winner": "model_b"}
    assert order("arena", row) == "b > a"
    result = read("arena", row)
    assert [turn.text for turn in result.examples[0].turns] == ["Hi"]
    assert result.notices == {
        f"{key}: JSON text is read as turns": 1 for key in ("prompt", "response_a", "response_b")
    }
    two = {**row, "prompt": '["Q", "Hi"]', "response_a": '["c", "a"]', "response_b": '["c", "b"]'}
    (example,) = read("arena", two).examples
    assert [turn.text for turn in example.turns] == ["Q", "c", "Hi"]
    assert example.order_scores() == [0.0, 1.0]
    for prompt in ('["Hi"', "[Hi]", "[]", "[1]"):
        (plain,) = read("arena", {**row, "prompt": prompt}).examples
        assert (plain.turns[0].text, plain.responses[0].text) == (prompt, '["a"]')


def test_neither_of_two_bad_answers_is_desirable() -> None:
    (example,) = read("arena", {**ARENA, "winner": "tie (bothbad)"}).examples
    assert [response.desirable for response in example.responses] == [False, False]
    assert example.order_scores() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("votes", "told"),
    [((1, 1, 2), "a > b"), ((2, 0, 2), "b > a"), ((0, 0, 1), "a = b"), (("1", "2", "1"), "a > b")],
)
def test_most_of_pandalms_annotators_decide(votes: tuple, told: str) -> None:
    named = {f"annotator{n}": vote for n, vote in enumerate(votes, 1)}
    assert order("pandalm", {**PANDALM, **named}) == told


@pytest.mark.parametrize(("preference", "told"), [(1, "a > b"), ("2", "b > a"), (2.0, "b > a")])
def test_alpaca_farm_counts_from_one(preference: Any, told: str) -> None:
    assert order("numbered", {**FARM, "preference": preference}) == told


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("response_1", "a > b"),
        ("Response 2", "b > a"),
        ("response1", "a > b"),
        ("model_2", "b > a"),
    ],
)
def test_the_better_of_any_two_answers_may_be_named(name: str, told: str) -> None:
    for key in ("winner", "preference", "preferred"):
        assert order("numbered", {**HELPSTEER, key: name}) == told


UNCLEAR = (
    "preference: a number may count from 0 or from 1; expected 'response_1', 'response_2' or 'tie'"
)


@pytest.mark.parametrize(
    ("format", "row", "why"),
    [
        ("numbered", {**HELPSTEER, "preference": 1}, f"{UNCLEAR}, got 1"),
        ("numbered", {**HELPSTEER, "preference": "2"}, f"{UNCLEAR}, got '2'"),
        ("numbered", {**HELPSTEER, "preference": -1}, f"{UNCLEAR}, got -1"),
        ("numbered", {**HELPSTEER, "preference": True}, f"{UNCLEAR}, got True"),
        ("numbered", {**FARM, "preference": 0},
         "preference: a number may count from 0 or from 1; expected 'output_1', 'output_2' or "
         "'tie', got 0"),
        ("numbered", {**FARM, "winner": 1},
         "winner: a number may count from 0 or from 1; expected 'output_1', 'output_2' or 'tie', "
         "got 1"),
        ("numbered", {**FARM, "winner": "output_3"},
         "winner: expected 'output_1', 'output_2' or 'tie', got 'output_3'"),
        ("numbered", {**FARM, "winner": "output_1", "preference": 2},
         "winner and preference both hold the better answer; keep one of them"),
        ("numbered", {**FARM, "preference": 1, "instruction": None}, "the prompt is missing"),
        ("helpsteer", {**HELPSTEER, "preference_strength": -4},
         "preference_strength: expected a number from -3, where the first answer is much better, "
         "to 3, got -4"),
        ("helpsteer", {**HELPSTEER, "preference_strength": 2,
                       "preference_statement": "@Response 1 is better than @Response 2."},
         "preference_strength: 2 and preference_statement '@Response 1 is better than @Response "
         "2.' differ"),
        ("arena", {**ARENA, "winner": "model_c"},
         "winner: expected 'response_a', 'response_b' or 'tie', got 'model_c'"),
        ("arena", {**ARENA, "winner": None, "winner_model_a": 1, "winner_model_b": 1},
         "winner_model_a, winner_model_b, winner_tie: expected one 1 and two 0, got "
         "[1.0, 1.0, 0.0]"),
        ("arena", {"winner": "model_a", "conversation_a": [*TALK, message("user", "More"),
                                                           message("assistant", "c")],
                   "conversation_b": [*OTHER, message("user", "More"), message("assistant", "d")]},
         "conversation_a and conversation_b differ before their last turn"),
        ("arena", {"prompt": '["Q", "Hi"]', "response_a": '["c", "a"]',
                   "response_b": '["d", "b"]', "winner": "model_a"},
         "response_a and response_b differ before their last turn"),
        ("arena", {"prompt": '["Hi"]', "response_a": '["a"]', "response_b": "[null]",
                   "winner": "model_a"},
         "response_b: content is missing"),
        ("arena", {"prompt": '["Hi"]', "response_a": '["a"]', "response_b": '["b", "c"]',
                   "winner": "model_a"},
         "response_b: the number of turns must be that of prompt, 1, got 2"),
        ("arena", {"prompt": '["Hi"]', "response_a": '["a"]', "response_b": '["b"]',
                   "winner": "model_a", "context": "c"},
         "context beside a conversation in prompt; put it into that conversation"),
        ("pandalm", {**PANDALM, "annotator1": 1, "annotator2": 2, "annotator3": 0},
         "annotators: no verdict has the most votes, got [1, 2, 0]"),
        ("pandalm", {**PANDALM, "annotator1": 3},
         "annotators: expected 1, 2, or 0 for a tie, got 3"),
    ],
)  # fmt: skip
def test_an_unclear_preference_is_refused_and_never_turned_round(
    format: str, row: Any, why: str
) -> None:
    assert reason(format, row) == why


def test_two_answers_that_nobody_compared_tell_no_format() -> None:
    with pytest.raises(DataError, match="unknown format"):
        detect_format([Record(0, HELPSTEER)], "rows")
