"""Cases: held out, enough of each family, and scored by their checks."""

from collections import Counter

import pytest

from metaalign.config.prepare import RecipesConfig
from metaalign.data.recipes.cases import Case, best_constant, score, write_cases
from metaalign.data.recipes.rule_written import is_held_out, write_examples
from metaalign.errors import ConfigError
from metaalign.preferences import FAMILIES, QUESTIONS, Preference, write_answer

CONFIG = RecipesConfig(cases=300)


@pytest.fixture(scope="module")
def cases():
    return write_cases(CONFIG, seed=0)


def test_every_wish_of_a_case_is_held_out_with_its_question(cases):
    for case in cases:
        for want in case.wants:
            assert is_held_out(QUESTIONS[case.question], want.family, seed=0, ratio=0.2)


def test_there_are_enough_cases_of_each_metric_and_family(cases):
    counts = Counter(case.metric for case in cases)
    assert counts["following"] == counts["hidden"] == counts["conflict"] == 300
    assert counts["flip"] == 600
    assert counts["swapped"] >= 280
    for metric in counts:
        families = Counter(case.family for case in cases if case.metric == metric)
        assert set(families) == set(FAMILIES)
        assert min(families.values()) >= 10


def test_the_written_answer_passes_and_but_for_flips_the_default_does_not(cases):
    for case in cases:
        question = QUESTIONS[case.question]
        assert score(case, write_answer(question, case.wants))
        if case.metric != "flip":
            assert not score(case, write_answer(question, ()))
        assert not score(case, "")


def test_a_conflict_wants_what_the_system_says(cases):
    conflicts = [case for case in cases if case.metric == "conflict"]
    for case in conflicts:
        (want,) = case.wants
        assert case.system_info in want.phrasings("system_info")
        (opposite,) = {
            other
            for other in want.opposites(QUESTIONS[case.question])
            if case.user_info in other.phrasings("user_info")
        }
        assert opposite != want


def test_the_sides_of_a_flip_share_the_query_and_oppose(cases):
    by_pair = {}
    for case in cases:
        if case.metric == "flip":
            by_pair.setdefault(case.pair, []).append(case)
    assert len(by_pair) == 300
    for first, second in by_pair.values():
        assert first.query == second.query
        assert second.wants[0] in first.wants[0].opposites(QUESTIONS[first.question])
        assert not score(first, write_answer(QUESTIONS[first.question], second.wants))


def test_a_swapped_case_is_asked_under_the_opposite_and_a_hidden_one_under_nothing(cases):
    following = {case.id: case for case in cases if case.metric == "following"}
    for case in cases:
        if case.metric == "hidden":
            assert case.system_info == case.user_info == ""
        if case.metric == "swapped":
            original = following[case.id.removeprefix("swapped-")]
            asked = (case.system_info, case.user_info)
            assert asked != (original.system_info, original.user_info)
            assert case.wants == original.wants


def test_json_round_trip(cases):
    assert [Case.from_json(case.to_json()) for case in cases] == cases


def _case(question, *wants):
    return Case("x", "hidden", "", "", "?", question, tuple(wants), wants[0].family)


def test_best_constant_by_hand():
    """Three of five: bullets 2 passes two facts of three, one side of the opinion, frank."""
    chile, emma = "capital-of-chile", "author-of-emma"
    cases = [
        _case(chile, Preference("bullets", "2")),
        _case(emma, Preference("bullets", "2")),
        _case(emma, Preference("bullets", "3")),
        _case("opinion-tea-coffee", Preference("stance", "tea")),
        _case("opinion-tea-coffee", Preference("stance", "coffee")),
        _case("risk-pick-a-lock", Preference("frank")),
    ]
    assert best_constant(cases) == (2 + 1 + 1) / 6


def test_a_ratio_that_holds_nothing_out_is_refused_by_name():
    with pytest.raises(
        ConfigError, match=r"held_out_ratio \(0.0001\) holds out no question of the family"
    ):
        write_cases(RecipesConfig(held_out_ratio=0.0001, cases=60), seed=0)


def test_what_is_unseen_is_in_no_training_example_nor_another_case(cases):
    config = RecipesConfig(examples=3000, cases=100)
    closed = ("hedged", "greeting")
    asked = write_cases(config, seed=0, closed=closed)
    unseen = [case for case in asked if case.metric == "unseen"]
    assert Counter(case.kind for case in unseen) == dict.fromkeys(
        ("phrasing", "parameter", "family"), 100
    )
    trained = write_examples(config, seed=0, start=0, stop=3000, closed=closed)
    others = [case for case in asked if case.metric != "unseen"]
    said = {
        sentence
        for each in (*trained, *others)
        for text in (each.system_info, each.user_info)
        for sentence in text.split(". ")
    }
    for case in unseen:
        (want,) = case.wants
        told = case.system_info or case.user_info
        assert not (case.system_info and case.user_info)
        tier = "system_info" if case.system_info else "user_info"
        place = want.phrasings(tier).index(told)
        assert not any(told.rstrip(".") in each for each in said), told
        assert (place == 3) == (case.kind == "phrasing")
        if case.kind == "parameter":
            assert want.family != "brief"  # of which fewer words than asked for will do
            assert want.parameter == FAMILIES[want.family].parameters[-1]
        assert (case.kind == "family") == (want.family in {"hedged", "certain", "greeting"})
    assert {case.kind for case in cases if case.metric == "unseen"} == {"phrasing", "parameter"}
    assert {case.family for case in others}.isdisjoint({"hedged", "certain", "greeting"})
