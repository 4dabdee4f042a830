"""Answers compared by objective: signs to scores, an order where one is asked for, all refusals."""

from typing import Any

import pytest

from metaalign.data.recipes.edits import reformulate
from metaalign.data.sources.options import SourceOptions
from tests.rows import ASKED, message, read, reason

PAIR = {"prompt": "Hi", "response_0": "a", "response_1": "b"}
SIGNS = {"helpfulness": ">", "humor": "<", "honesty": "="}


def test_signs_become_scores_by_objective() -> None:
    (example,) = read("compared", {**PAIR, "labels": SIGNS}, order_by="humor").examples
    assert [dict(response.scores) for response in example.responses] == [
        {"helpfulness": 1.0, "humor": 0.0, "honesty": 0.5},
        {"helpfulness": 0.0, "humor": 1.0, "honesty": 0.5},
    ]
    assert example.order_scores() == [0.0, 1.0]


def test_several_objectives_want_one_that_orders_unless_a_corrector_reads_them_all() -> None:
    row = {**PAIR, "better_response_id": 1, "safer_response_id": 0}
    for recipe in (None, "helpful"):
        assert "give order_by one of ['helpfulness', 'harmlessness']" in reason(
            "compared", row, recipe=recipe
        )
    (safe,) = read("compared", row, order_by="harmlessness", recipe="helpful").examples
    assert safe.order_scores() == [1.0, 0.0]
    assert len(read("compared", row, recipe="contrastive").examples) == 1


def test_algorithm_1_makes_both_directions_and_the_equal_one_of_them() -> None:
    (example,) = read("compared", {**PAIR, "labels": SIGNS}, recipe="contrastive").examples
    first, second = reformulate(example, SourceOptions(recipe="contrastive"))
    told = [(each.turns[0].text, each.responses[0].text) for each in (first, second)]
    assert ("Helpfulness: " in told[0][0], "Answer: b | Edit" in told[0][0], told[0][1]) == (
        True,
        True,
        "a",
    )
    assert ("Humor: " in told[1][0], "Answer: a | Edit" in told[1][0], told[1][1]) == (
        True,
        True,
        "b",
    )
    (equal,) = reformulate(example, SourceOptions(recipe="equal"))
    assert "Honesty: " in equal.turns[0].text
    assert "Humor" not in equal.turns[0].text


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({}, "labels: nobody compared the answers"),
        ({"labels": {}}, "labels: nobody compared the answers"),
        ({"labels": {"humor": ">>"}}, "labels.humor: expected '>', '<' or '=', got '>>'"),
        ({"labels": {"humor": 1}}, "labels.humor: expected '>', '<' or '=', got 1"),
        ({"labels": {"humor": [">"]}}, "labels.humor: expected '>', '<' or '=', got ['>']"),
        ({"labels": 1}, "labels: expected an object, got 1"),
        ({"better_response_id": 2}, "better_response_id: expected 0 or 1, got 2"),
        ({"better_response_id": True}, "better_response_id: expected 0 or 1, got True"),
        ({"safer_response_id": [0]}, "safer_response_id: expected 0 or 1, got [0]"),
        ({"labels": {"humor": ">"}, "response_1": "a"}, "two responses are equal"),
        ({"labels": {"humor": ">"}, "prompt": None}, "the prompt is missing"),
    ],
)
def test_what_cannot_be_compared_says_why(more: dict[str, Any], why: str) -> None:
    assert reason("compared", {**PAIR, **more}) == why


@pytest.mark.parametrize("label", [2, True, "1", None, [1]])
def test_a_comment_is_preferred_by_0_or_1(label: Any) -> None:
    row = {"history": "Hi", "human_ref_A": "a", "human_ref_B": "b", "labels": label}
    assert reason("shp", row).startswith("labels: expected 1 for the first answer or 0, got")


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"input": {"messages": ASKED, "tools": [{}]}}, "input.tools: only text can be trained on"),
        ({"input": {}}, "input.messages: expected a list of objects, got None"),
        ({"preferred_output": "a"}, "preferred_output: expected a list of objects, got 'a'"),
        ({"preferred_output": []}, "chosen: the last turn is not the assistant's"),
    ],
)
def test_a_pair_of_openais_says_why_it_is_none(more: dict[str, Any], why: str) -> None:
    row = {
        "input": {"messages": ASKED},
        "preferred_output": [message("assistant", "a")],
        "non_preferred_output": [message("assistant", "b")],
    }
    assert read("openai", row).used == 1
    assert not read("openai", row).ignored
    assert reason("openai", {**row, **more}).startswith(why)
