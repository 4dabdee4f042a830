"""Negatives: worse by construction, never the right answer, never the same again."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from metaalign.config.teacher import NegativesConfig
from metaalign.data.teachers.negatives import first_sentence, likeness, with_negative
from metaalign.data.teachers.replies import Ask
from metaalign.errors import RowError
from metaalign.examples import Example, Response, Source, Turn
from metaalign.preferences import Preference
from metaalign.preferences.wishes import are_obeyed, wishes_tag
from metaalign.upstream import AnswerError, Reply, Request

PAIR = (
    Response("LIMA IS IT.", {"preference": 1.0}, True),
    Response("Lima is it.", {"preference": 0.0}),
)


def example(*responses: Response, **fields: Any) -> Example:
    return Example(
        turns=(Turn("user", "Hi"), Turn("assistant", "Hello."), Turn("user", "Capital?", "Loud.")),
        responses=responses or PAIR,
        source=Source("rows.jsonl", 3),
        system_info="Be loud.",
        user_info="I am Ana.",
        tags={"split": "train"},
        conversation="c",
        **fields,
    )


def saying(script: Callable[[Request, int], str | Reply]) -> tuple[Ask, list[Request]]:
    """A teacher, and what it was asked."""
    asked: list[Request] = []

    async def ask(_: str, request: Request) -> Reply:
        asked.append(request)
        said = script(request, len(asked) - 1)
        return Reply(said, "stop") if isinstance(said, str) else said

    return ask, asked


def made(ask: Ask, given: Example, **settings: Any) -> Example:
    config = NegativesConfig(teacher="t", **settings)
    return asyncio.run(with_negative(given, config, ask, seed=0))


def texts(one: Example) -> list[str]:
    return [response.text for response in one.responses]


def test_a_sampled_negative_stands_beside_the_others_as_bad_as_the_worst() -> None:
    ask, asked = saying(lambda _, __: " Quito, I think.\n")
    one = made(ask, example())
    assert texts(one) == ["LIMA IS IT.", "Lima is it.", "Quito, I think."]
    assert one.order_scores() == [1.0, 0.0, 0.0]
    assert one.tags["negative"] == "sampled"
    assert asked == [
        Request(
            turns=example().turns,
            system_info="Be loud.",
            user_info="I am Ana.",
            draw="0/sampled/0",
        )
    ]
    one.validate()


def test_it_may_take_their_place() -> None:
    ask, _ = saying(lambda _, __: "Quito.")
    given = example(
        Response("c", {"help": 2.0}), Response("a", {"help": 7.0}), order_by="help", margin=2.0
    )
    one = made(ask, given, replace=True)
    assert texts(one) == ["a", "Quito."]
    assert one.order_scores() == [1.0, 0.0]
    assert one.margin == 0.0
    beside = made(ask, given)
    assert beside.order_scores() == [2.0, 7.0, 2.0]
    assert beside.order_by == "help"


def test_one_answer_becomes_a_pair() -> None:
    ask, _ = saying(lambda _, __: "Quito.")
    one = made(ask, example(Response("Lima.")))
    assert (texts(one), one.order_scores()) == (["Lima.", "Quito."], [1.0, 0.0])


def test_what_is_hidden_is_every_word_of_the_meta_prompt() -> None:
    ask, asked = saying(lambda _, __: "Quito.")
    made(ask, example(), way="hidden")
    (request,) = asked
    assert (request.system_info, request.user_info) == ("", "")
    assert [turn.user_info for turn in request.turns] == ["", "", ""]
    assert [turn.text for turn in request.turns] == ["Hi", "Hello.", "Capital?"]


def test_where_nothing_is_said_nothing_is_hidden_and_nobody_asked() -> None:
    ask, asked = saying(lambda _, __: "Quito.")
    plain = replace(example(), system_info="", user_info="", turns=(Turn("user", "Capital?"),))
    assert made(ask, plain, way="hidden") == plain
    consensus = replace(example(), tags={"recipe": "consensus"})
    assert made(ask, consensus, way="hidden_tails") == consensus
    for given in (plain, consensus):
        with pytest.raises(RowError, match=r"no meta-prompt to hide.* way=sampled"):
            made(ask, replace(given, responses=PAIR[:1]), way="hidden_tails")
    assert asked == []


def test_what_is_too_much_alike_is_asked_for_again_in_another_draw() -> None:
    said = ["LIMA IS IT.", "Lima is it.", "Quito."]
    ask, asked = saying(lambda _, number: said[number])
    assert texts(made(ask, example()))[2] == "Quito."
    assert [each.draw for each in asked] == ["0/sampled/0", "0/sampled/1", "0/sampled/2"]
    ask, asked = saying(lambda _, number: said[number])
    assert made(ask, example(), tries=2) == example()
    assert "negative" not in example().tags
    ask, asked = saying(lambda _, __: said[0])
    made(ask, example(), temperature=0)
    assert len(asked) == 1  # it would say the same again


def test_one_that_needs_a_negative_is_left_out_without() -> None:
    ask, _ = saying(lambda _, __: "LIMA IS IT.")
    for given, settings in (
        (example(PAIR[0]), {}),
        (example(), {"replace": True}),
        (example(*(replace(each, scores={}) for each in PAIR)), {}),
    ):
        with pytest.raises(RowError, match="as good as the best response or too similar to it"):
            made(ask, given, **settings)
    with pytest.raises(RowError, match="every response is undesirable"):
        made(ask, example(Response("x", {}, False)))


def test_what_obeys_a_checkable_preference_is_no_negative() -> None:
    wishes = wishes_tag([Preference("capitals")])
    given = replace(example(), tags={"split": "train", "wishes": wishes})
    said = ["QUITO, SURELY.", "Quito, surely."]
    ask, asked = saying(lambda _, number: said[number])
    assert texts(made(ask, given))[2] == "Quito, surely."
    assert len(asked) == 2
    ask, _ = saying(lambda _, __: said[0])
    assert texts(made(ask, example()))[2] == said[0]  # nothing tells what was wished for


def test_wishes_are_all_to_be_obeyed_and_a_tag_of_ones_own_checks_nothing() -> None:
    both = wishes_tag([Preference("capitals"), Preference("bullets", "2")])
    assert both == '[["capitals", ""], ["bullets", "2"]]'
    assert not are_obeyed(both, "LIMA.")
    assert are_obeyed(wishes_tag([Preference("capitals")]), "LIMA.")
    for tag in ("", "[]", "loud", "3", '[["nothing", ""]]', '["capitals"]', '{"a": 1}'):
        assert not are_obeyed(tag, "LIMA.")


def test_every_sentence_of_the_best_one_gets_another_tail() -> None:
    best = "Lima is the capital of Peru.  It lies by the sea!\n\n* And it is old"
    ask, asked = saying(lambda request, number: f" end{number}. And more. {len(request.head)}")
    one = made(ask, example(Response(best)), way="hidden_tails", max_tokens=9)
    heads = [request.head for request in asked]
    sentences = ("Lima is the capital of Peru.", "It lies by the sea!", "* And it is old")
    for number, sentence in enumerate(sentences):
        before = best[: best.index(sentence)]
        assert heads[number].startswith(before.rstrip())
        assert best.startswith(heads[number])
        assert not heads[number][-1].isspace()
        cut = heads[number][len(before) :]
        assert cut
        assert cut != sentence
    said = texts(one)[1]
    kept = [head[best.index(each) :] for head, each in zip(heads, sentences, strict=True)]
    assert said == f"{kept[0]} end0.  {kept[1]} end1.\n\n{kept[2]} end2."
    assert all(each.system_info == each.user_info == "" for each in asked)
    assert {each.max_tokens for each in asked} == {9}


def test_tails_are_compared_without_their_heads() -> None:
    """The heads are equal in any case; of a long answer with one new word they would decide."""
    best = "One two three four five six seven eight nine yes."
    ask, asked = saying(lambda request, _: best[len(request.head) :])
    with pytest.raises(RowError, match="too similar to it"):
        made(ask, example(Response(best)), way="hidden_tails")
    assert len(asked) == 3
    assert len({each.head for each in asked}) > 1  # cut elsewhere each time
    ask, _ = saying(lambda request, _: best[len(request.head) :].replace("yes", "no"))
    config = {"way": "hidden_tails", "most_alike": 0.95}
    assert texts(made(ask, example(Response(best)), **config))[1].endswith("no.")


def test_a_single_word_is_asked_for_anew() -> None:
    ask, asked = saying(lambda _, __: "Quito. Or so.")
    assert texts(made(ask, example(Response("LIMA.")), way="hidden_tails")) == ["LIMA.", "Quito."]
    assert asked[0].head == ""


def test_an_answer_that_was_cut_off_or_is_empty_is_none() -> None:
    for reply, message in (
        (Reply("Quito is", "length"), "cut off; raise max_tokens"),
        (Reply("Quito", "content_filter"), "withheld by the server's filter"),
        (Reply(" \n", "stop"), "an answer is empty"),
        (Reply("Quito is", "abort"), "broke off at the server"),
    ):
        ask, _ = saying(lambda _, __, reply=reply: reply)
        with pytest.raises(AnswerError, match=message):
            made(ask, example())
    ask, _ = saying(lambda _, __: Reply("Quito.", "eos"))  # as some servers say it
    assert texts(made(ask, example()))[2] == "Quito."
    ask, _ = saying(lambda _, __: Reply("", "content_filter"))
    with pytest.raises(AnswerError, match="withheld"):
        made(ask, example(), way="hidden_tails")
    ask, _ = saying(lambda _, __: Reply(" is not it. And", "length"))
    assert "is not it." in texts(made(ask, example(), way="hidden_tails"))[2]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        (" in Peru. And", " in Peru."),
        (" 3.5 m\nNext", " 3.5 m"),
        (" so", " so"),
        ("?! Yes.", "?!"),
        ("", ""),
    ],
)
def test_a_tail_ends_with_its_sentence_or_line(text: str, first: str) -> None:
    assert first_sentence(text) == first


def test_likeness_is_of_words() -> None:
    assert likeness("a b c d", "a b c d") == 1
    assert likeness("a b c d", "a b x y") == 0.5
    assert likeness("", "a") == 0
