"""What is made of an example: answers, judgement, recipe and negative, in this order."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from metaalign.data.prepare import prepare_store
from metaalign.preferences.wishes import are_obeyed
from tests.scripted_server import served
from tests.test_asking import config_of, seed_of, texts
from tests.test_parts import write

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_a_conversation_is_answered_turn_by_turn(tmp_path: Path) -> None:
    asked = {"turns": ["Who are you?", "And I?"], "question_id": 81, "category": "writing"}
    file = write(tmp_path / "mt.jsonl", [asked] * 1)

    def script(body: dict[str, Any], _: int) -> str:
        return f"{len(body['messages'])} {body['seed']}"

    samples = {"teacher": "t", "samples": 2}
    with served(script) as server:
        source = {"path": str(file), "responses": samples, "format": "prompts"}
        store = prepare_store(config_of(tmp_path, server.url, sources=[source]))
        seeds = [seed_of(f"0/respond/{number}") for number in range(2)]
        assert texts(store, 0) == [f"1 {seed}" for seed in seeds]
        assert texts(store, 1) == [f"3 {seed}" for seed in seeds]
        later = [body["messages"] for body in server.asked if len(body["messages"]) == 3]
        assert later[0] == [
            {"role": "user", "content": "Who are you?"},
            {"role": "assistant", "content": f"1 {seeds[0]}"},
            {"role": "user", "content": "And I?"},
        ]


def test_a_judge_orders_what_a_teacher_answered_and_recipes_follow(tmp_path: Path) -> None:
    """Two answers, the longer one judged better, and it is the one that a recipe makes obey."""
    file = write(tmp_path / "rows.jsonl", [{"prompt": f"Query {n}?"} for n in range(3)])
    long = "It is Lima, by the sea. It is old. It is large. It is loud. It is near the desert."

    def script(body: dict[str, Any], _: int) -> str:
        told = body["messages"][-1]["content"]
        if "[What to judge]" not in told:
            return long if body["seed"] == seed_of("0/respond/1") else "Lima."
        first = told.index("[Answer A]") < told.index(long) < told.index("[Answer B]")
        return "A: 9\nB: 2" if first else "A: 2\nB: 9"

    with served(script) as server:
        source = {
            "path": str(file),
            "responses": {"teacher": "t", "samples": 2},
            "judgement": {"teacher": "t", "objectives": {"depth": "How deep is it"}},
            "order_by": "depth",
        }
        store = prepare_store(config_of(tmp_path, server.url, sources=[source]))
        assert texts(store, 0) == ["Lima.", long]
        assert store.columns.order_score[:2].tolist() == [2.0, 9.0]
        asked = len(server.asked)
        assert asked == 3 * (2 + 2)
        source["recipe"] = "priority"
        made = prepare_store(config_of(tmp_path, server.url, sources=[source], output="made"))
        assert len(server.asked) == asked
    assert len(made) > 3
    assert {made.tags(n)["recipe"] for n in range(len(made))} == {"priority"}
    for number in range(len(made)):  # shortened or not, it is the longer answer's beginning
        assert "by the sea" in texts(made, number)[0].lower()


def test_rule_written_examples_get_negatives_too(tmp_path: Path) -> None:
    recipes = {"examples": 100, "cases": 20, "negatives": {"teacher": "t", "way": "hidden"}}
    with served(lambda _, number: f"whatever {number}") as server:
        store = prepare_store(config_of(tmp_path, server.url, recipes=recipes))
        counts = Counter(len(texts(store, n)) for n in range(len(store)))
        (entry,) = store.manifest["ledger"]
        assert counts[2] == entry["plain"] > 0  # nothing was said to them, so nothing hidden
        assert counts[3] == 120 - counts[2]
        first = sum(body["seed"] == seed_of("0/hidden/0") for body in server.asked)
        assert first < counts[3]  # both sides of a flip hide the same


def test_a_judge_orders_what_the_source_compared_by_several_objectives(tmp_path: Path) -> None:
    row = {"prompt": "Hi", "response_0": "a", "response_1": "b", "better_response_id": 0}
    file = write(tmp_path / "rows.jsonl", [{**row, "safer_response_id": 1}])

    def script(body: dict[str, Any], _: int) -> str:
        second_first = "[Answer A]\nb" in body["messages"][-1]["content"]
        return "A: 9\nB: 2" if second_first else "A: 2\nB: 9"

    with served(script) as server:
        for order_by in (None, "helpfulness"):
            source = {
                "path": str(file),
                "judgement": {"teacher": "t", "objectives": {"helpfulness": "Does it help"}},
                "order_by": order_by,
            }
            store = prepare_store(config_of(tmp_path, server.url, sources=[source]))
            assert store.columns.order_score.tolist() == [2.0, 9.0]


def test_ifeval_and_mt_bench_are_answered_whole_and_ifeval_made_to_obey(
    tmp_path: Path, shared_data: Path
) -> None:
    said = "The bees, which live here, make honey. They fly! It is so. They rest, too. They sing."
    with served(lambda _, number: f"{said} {number}.") as server:
        asked = {"responses": {"teacher": "t"}}
        sources = [
            {"path": f"{shared_data}/ifeval/input_data.jsonl", **asked, "recipe": "priority"},
            {"path": f"{shared_data}/mt_bench/mt_bench_question.jsonl", **asked},
        ]
        store = prepare_store(config_of(tmp_path, server.url, sources=sources))
        prompts, talks = store.manifest["ledger"]
        assert (prompts["rows"], prompts["quarantined"], prompts["untaught"]) == (541, 0, 0)
        assert 1_040 < prompts["written"] <= 2 * 541  # some would obey and disobey alike
        assert (talks["rows"], talks["examples"], talks["written"]) == (80, 80, 160)
        assert store.manifest["teachers"]["t"]["asked"] == len(server.asked) <= 541 + 160
    obeyed = 0
    for example in range(prompts["written"]):
        wishes, first = store.tags(example).get("wishes", ""), texts(store, example)[0]
        assert are_obeyed(wishes, first) or not wishes
        obeyed += bool(wishes)
    assert obeyed > 900
