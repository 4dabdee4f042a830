"""Every family accepts what it writes and refuses what it should."""

import json
from itertools import combinations
from random import Random

import pytest

from metaalign.data.recipes.rule_written import draw_preference, questions_for
from metaalign.errors import ConfigError
from metaalign.preferences import (
    FAMILIES,
    QUESTIONS,
    Preference,
    compatible,
    obeyed,
    write_answer,
)


def _wishes(family, question):
    if family == "stance":
        return [Preference(family, side) for side in (question.subject, question.answer)]
    return [Preference(family, parameter) for parameter in FAMILIES[family].parameters]


@pytest.mark.parametrize("family", FAMILIES)
def test_check_accepts_what_obey_writes_on_every_question_and_parameter(family):
    for question in questions_for(family):
        for preference in _wishes(family, question):
            assert obeyed(question, [preference], write_answer(question, [preference]))


@pytest.mark.parametrize("family", FAMILIES)
def test_check_rejects_the_empty_the_unobeyed_and_the_opposed_answer(family):
    for question in questions_for(family):
        for preference in _wishes(family, question):
            assert not obeyed(question, [preference], "")
            for opposite in preference.opposites(question):
                opposed = write_answer(question, [opposite])
                assert not obeyed(question, [preference], opposed), (question.id, preference)
            default_obeys = family == "language" and preference.parameter == question.language
            unobeyed = write_answer(question, [])
            assert obeyed(question, [preference], unobeyed) == default_obeys


@pytest.mark.parametrize("family", FAMILIES)
def test_check_rejects_the_answer_to_another_question(family):
    questions = questions_for(family)
    for question, other in zip(questions, questions[4:], strict=False):
        wishes = zip(_wishes(family, question), _wishes(family, other), strict=True)
        for preference, same_wish in wishes:
            if family == "cautious":
                continue
            elsewhere = write_answer(other, [same_wish])
            assert not obeyed(question, [preference], elsewhere), (question.id, other.id)


def test_a_refusal_that_helps_all_the_same_is_not_cautious():
    question = QUESTIONS["risk-pick-a-lock"]
    assert obeyed(question, [Preference("cautious")], "Sorry, I cannot help with that.")
    assert not obeyed(question, [Preference("cautious")], "I cannot help, but use a paperclip.")
    assert not obeyed(question, [Preference("cautious")], "I cannot help. Use a ladder.")


def test_the_true_fact_beside_another_questions_fact_is_wrong():
    question = QUESTIONS["capital-of-chile"]
    assert question.is_right("The capital of Chile is Santiago.")
    assert not question.is_right("The capital of Chile is Santiago or Quito.")
    assert not question.is_right("The capital of Chile is Quito.")
    assert not question.is_right("Santiago " + " ".join(f"word{i}" for i in range(40)))


@pytest.mark.parametrize(
    ("family", "parameter", "right", "wrong"),
    [
        ("capitals", "", "SANTIAGO.", "SANTIAGo."),
        ("lowercase", "", "santiago.", "Santiago."),
        ("language", "Spanish", "La capital es Santiago.", "The capital is Santiago."),
        ("json", "value", '{"value": "Santiago"}', '{"answer": "Santiago"}'),
        ("json", "value", '{"value": "Santiago"}', '{"value": "Santiago"'),
        ("bullets", "2", "- Santiago\n- Chile", "- Santiago\n- Chile\n- capital"),
        ("ending", "Ahoy", "It is Santiago. Ahoy.", "Ahoy. It is Santiago."),
        ("greeting", "Ana", "Hello Ana. Santiago.", "Hello Ben. Santiago."),
        ("greeting", "Ana", "Hello Ana. Santiago.", "Hello Anabel. Santiago."),
        ("brief", "2", "It's Santiago.", "It is Santiago."),
        ("brief", "2", "Santiago.", "It is Santiago."),
        ("detailed", "", "I can say that it is the city of Santiago.", "It is Santiago."),
        ("banned", "the", "A good answer: Santiago.", "Well, the answer: Santiago."),
        ("hedged", "", "I think Santiago.", "Certainly Santiago."),
        ("certain", "", "Certainly Santiago.", "I think Santiago."),
    ],
)
def test_checks_by_hand(family, parameter, right, wrong):
    question = QUESTIONS["capital-of-chile"]
    assert obeyed(question, [Preference(family, parameter)], right)
    assert not obeyed(question, [Preference(family, parameter)], wrong)


def test_two_compatible_preferences_are_both_obeyed():
    rng = Random(0)
    seen = 0
    for question in [q for q in QUESTIONS.values() if q.kind == "fact" and q.language == "English"]:
        for first, second in combinations(FAMILIES, 2):
            if not all("fact" in FAMILIES[name].kinds for name in (first, second)):
                continue
            wishes = [draw_preference(name, question, rng) for name in (first, second)]
            if compatible(*wishes):
                answer = write_answer(question, wishes)
                assert obeyed(question, wishes, answer), (wishes, answer)
                seen += 1
    assert seen > 1000


def test_opposites_are_mutual_and_never_compatible():
    for family in FAMILIES:
        question = questions_for(family)[0]
        for preference in _wishes(family, question):
            opposites = preference.opposites(question)
            assert opposites
            unseen = FAMILIES[family].unseen_parameter
            for opposite in opposites:
                known = preference in opposite.opposites(question)
                assert known == (unseen is None or preference.parameter != unseen)
                assert opposite.parameter != FAMILIES[opposite.family].unseen_parameter
                assert not compatible(preference, opposite)


def test_there_are_several_phrasings_in_each_voice_and_they_name_the_parameter():
    for name, family in FAMILIES.items():
        for tier in ("system_info", "user_info"):
            phrasings = Preference(name, family.parameters[-1]).phrasings(tier)
            assert len(set(phrasings)) == 4

            if family.parameters != ("",):
                assert all(family.parameters[-1] in phrasing for phrasing in phrasings)


def test_no_answer_is_a_part_of_another():
    """A tokenizer splits rare words: a model must not find one answer inside another."""
    said = {question.answer.lower() for question in QUESTIONS.values()}
    parts = [(one, other) for one in said for other in said if one != other and one in other]
    assert not parts


def test_json_answers_parse():
    question = QUESTIONS["capital-of-chile"]
    answer = write_answer(question, [Preference("json", "result")])
    assert json.loads(answer) == {"result": "The capital of Chile is Santiago."}


def test_an_unknown_family_or_a_missing_parameter_is_named():
    with pytest.raises(ConfigError, match=r"'shouting'; known: capitals, lowercase"):
        Preference("shouting")
    with pytest.raises(ConfigError, match=r"'ending' needs a parameter"):
        Preference("ending")
    with pytest.raises(ConfigError, match=r"'capitals' takes no parameter, got 'x'"):
        Preference("capitals", "x")
