"""A judge's scores: read from words, free of the place, and ordering what they should."""

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest

from metaalign.config.teacher import JudgementConfig
from metaalign.data.teachers.judging import judge, judge_prompt, read_scores
from metaalign.data.teachers.replies import Ask
from metaalign.errors import RowError
from metaalign.examples import Example, Response, Source, Turn, ordered_pairs
from metaalign.upstream import AnswerError, Reply, Request


def example(*texts: str) -> Example:
    return Example(
        turns=(Turn("user", "Capital of Peru?"),),
        responses=tuple(Response(text, {"other": 1.0}, True) for text in texts),
        source=Source("rows.jsonl", 3),
        system_info="Be brief.",
        user_info="I am Ana.",
        conversation="c",
    )


def judged_by(score: Callable[[str, int], float]) -> tuple[Ask, list[Request]]:
    """A judge that scores an answer by its text and its place, and what it was asked."""
    asked: list[Request] = []

    async def ask(teacher: str, request: Request) -> Reply:
        assert teacher == "big"
        asked.append(request)
        shown = re.findall(r"\[Answer (.)\]\n(.*)", request.turns[0].text)
        lines = [f"{letter}: {score(text, place)}" for place, (letter, text) in enumerate(shown)]
        return Reply("I have read them.\n" + "\n".join(lines), "stop")

    return ask, asked


def judged(ask: Ask, *texts: str, order_by: str | None = None, **settings: Any) -> Example:
    config = JudgementConfig(teacher="big", **settings)
    return asyncio.run(judge(example(*texts), config, ask, seed=0, order_by=order_by))


def test_scores_go_to_the_answers_whatever_their_order() -> None:
    ask, asked = judged_by(lambda text, _: 10 - len(text))
    made = judged(ask, "aaaa", "a", "aa", "aaa")
    assert made.order_scores() == [6, 9, 8, 7]
    assert made.order_by == "preference"
    assert made.responses[0].scores == {"other": 1.0, "preference": 6}
    assert {response.desirable for response in made.responses} == {None}
    first, second = (re.findall(r"\[Answer .\]\n(.*)", each.turns[0].text) for each in asked)
    assert first == second[::-1]
    assert sorted(first) == ["a", "aa", "aaa", "aaaa"]


def test_a_judge_that_looks_at_the_place_alone_prefers_neither() -> None:
    ask, _ = judged_by(lambda _, place: 9 - 5 * place)
    assert ordered_pairs(judged(ask, "a", "b").order_scores()) == []
    assert ordered_pairs(judged(ask, "a", "b", orders=1).order_scores()) != []


def test_contradicting_orders_are_a_tie_even_where_their_mean_is_not() -> None:
    """8 by 5 in one order and 5 by 7 in the other: the mean says 6.5 by 6."""
    told = iter(["A: 8\nB: 5", "A: 7\nB: 5"])

    async def ask(_: str, __: Request) -> Reply:
        return Reply(next(told), "stop")

    assert judged(ask, "a", "b").order_scores() == [6.25, 6.25]


def test_objectives_are_asked_one_by_one_and_their_mean_is_the_preference() -> None:
    async def ask(_: str, request: Request) -> Reply:
        text = request.turns[0].text
        by = {"short": len, "long": lambda each: 11 - len(each) * 2}
        wanted = next(each for word, each in by.items() if f"[What to judge]\n{word}" in text)
        shown = re.findall(r"\[Answer (.)\]\n(.*)", text)
        return Reply("\n".join(f"{letter}: {wanted(said)}" for letter, said in shown), "stop")

    objectives = {"brevity": "short", "depth": "long"}
    made = judged(ask, "a", "bbb", objectives=objectives)
    assert [response.scores["brevity"] for response in made.responses] == [1, 3]
    assert [response.scores["depth"] for response in made.responses] == [9, 5]
    assert made.order_scores() == [5, 4]
    ordered = judged(ask, "a", "bbb", objectives=objectives, order_by="brevity")
    assert ordered.order_scores() == [1, 3]


def test_a_judge_that_was_cut_off_gave_no_answer() -> None:
    async def ask(_: str, __: Request) -> Reply:
        return Reply("A: 3\nB: 8\nBut on reflection A is", "length")

    with pytest.raises(AnswerError, match="cut off"):
        judged(ask, "a", "b")


def test_one_answer_needs_no_judge_and_too_many_have_no_letters() -> None:
    ask, asked = judged_by(lambda _, __: 5)
    assert judged(ask, "a") == example("a")
    assert asked == []
    with pytest.raises(RowError, match="at most 26 answers"):
        judged(ask, *(f"{number}" for number in range(27)))


def test_the_judge_sees_all_tiers_turns_and_answers() -> None:
    asked = Example(
        turns=(Turn("user", "Hi"), Turn("assistant", "Hello."), Turn("user", "Bye?", "I am Ben.")),
        responses=(Response("one"), Response("two")),
        source=Source("f", 0),
        system_info="Be brief.",
    )
    assert judge_prompt(asked, "Is it kind", [1, 0]) == (
        "[What the assistant was told]\nBe brief.\n\n[The user]\nHi\n\n[The assistant]\nHello.\n\n"
        "[What the user says of themselves from here on]\nI am Ben.\n\n[The user]\nBye?\n\n"
        "[Answer A]\ntwo\n\n[Answer B]\none\n\n"
        "[What to judge]\nIs it kind.\nGive every answer a score from 1, the worst, to 10, the "
        'best. End with one line for each: "A: ..." and "B: ...".'
    )


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        ("A: 7\nB: 3", [7, 3]),
        ("**A: 7**\n**B: 3.5**", [7, 3.5]),
        ("- Answer A: 7/10\n- Answer B: 3 / 10\n", [7, 3]),
        ("At first A: 2\n\nA: 2\nB: 9\nNo:\nA = 8\nB = 1", [8, 1]),
    ],
)
def test_scores_are_read_as_judges_write_them(text: str, scores: list[float]) -> None:
    assert read_scores(text, 2) == scores


@pytest.mark.parametrize("text", ["", "A: 7", "A: 7\nB: high", "A: 7\nB: 11", "A: 7\nB: 0"])
def test_a_judge_without_a_score_gave_no_answer(text: str) -> None:
    with pytest.raises(AnswerError, match="the judge gave no score"):
        read_scores(text, 2)
