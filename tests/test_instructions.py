"""Every instruction can be said, obeyed and checked, and its opposite is not obeyed with it."""

import json

import pytest

from metaalign.preferences.instructions import INSTRUCTIONS, Wish, answers
from metaalign.preferences.rewriting import sentences

TEXT = (
    "Bees make honey, which they store for the winter. They also pollinate flowers! A hive may "
    "hold 50,000 bees. Most of them are workers. The queen lays the eggs. Drones do not work."
)
SAID = 'Lima, of course. It is "big". Ask me more.'
WISHES = [Wish(name, each) for name, told in INSTRUCTIONS.items() for each in told.parameters]


def test_sentences_are_told_by_their_ends() -> None:
    assert sentences(" One, two.  Three! Four? 5.5 and\nsix") == [
        "One, two.", "Three!", "Four?", "5.5 and\nsix",
    ]  # fmt: skip


@pytest.mark.parametrize("wish", WISHES, ids=str)
def test_what_obeys_a_wish_obeys_nothing_that_opposes_it(wish: Wish) -> None:
    assert wish.opposites()
    for against in wish.opposites():
        assert wish in against.opposites()
        made = answers(TEXT, wish, against)
        assert made is not None
        own, other = made
        assert wish.is_obeyed(own)
        assert not wish.is_obeyed(other)
        assert against.is_obeyed(other)
        assert not against.is_obeyed(own)


@pytest.mark.parametrize(
    ("name", "parameter", "made"),
    [
        ("change_case:english_capital", "", 'LIMA, OF COURSE. IT IS "BIG". ASK ME MORE.'),
        ("change_case:english_lowercase", "", 'lima, of course. it is "big". ask me more.'),
        ("punctuation:no_comma", "", 'Lima of course. It is "big". Ask me more.'),
        ("plain:commas", "", SAID),
        ("startend:quotation", "", None),
        ("detectable_format:title", "", f"<<Lima, of course. It>>\n\n{SAID}"),
        ("startend:end_checker", "Take care.", f"{SAID} Take care."),
        ("detectable_format:number_bullet_lists", "5", None),
        (
            "detectable_format:number_bullet_lists",
            "2",
            '* Lima, of course. It is "big".\n* Ask me more.',
        ),
        (
            "length_constraints:number_paragraphs",
            "3",
            'Lima, of course.\n\n***\n\nIt is "big".\n\n***\n\nAsk me more.',
        ),
        ("length_constraints:number_sentences", "2", 'Lima, of course. It is "big".'),
        ("length_constraints:number_sentences", "3", None),
        ("plain:at_length", "2", SAID),
    ],
)
def test_answers_as_they_are_made_to_obey(name: str, parameter: str, made: str | None) -> None:
    assert Wish(name, parameter).obey(SAID) == made


def test_json_holds_the_whole_answer_under_the_key() -> None:
    told = Wish("detectable_format:json_format", "reply").obey(SAID)
    assert told is not None
    assert json.loads(told) == {"reply": SAID}


def test_a_text_that_cannot_be_made_to_oppose_is_refused() -> None:
    capitals, lowercase = (Wish(f"change_case:english_{case}") for case in ("capital", "lowercase"))
    assert answers("12", capitals, lowercase) is None
    assert answers("No comma", Wish("plain:commas"), Wish("punctuation:no_comma")) is None
    phrase = Wish("startend:end_checker", "Take care.")
    said = "Take care."
    assert answers(said, phrase, Wish("startend:end_checker", "Stay curious.")) is not None


def test_phrasings_are_distinct_and_name_the_parameter() -> None:
    tiers = ("system_info", "user_info")
    said = [text for wish in WISHES for tier in tiers for text in wish.phrasings(tier)]
    assert len(set(said)) == len(said)
    for wish in WISHES:
        for tier in tiers:
            assert len(wish.phrasings(tier)) == 4
            assert all(wish.parameter in text for text in wish.phrasings(tier))
