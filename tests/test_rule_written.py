"""Recipes: deterministic, opposed, held out as they say, and the winner wins."""

from collections import Counter

import pytest

from metaalign.config.prepare import RecipesConfig
from metaalign.data.recipes.rule_written import (
    RECIPES,
    count_examples,
    is_held_out,
    questions_for,
    write_examples,
)
from metaalign.errors import ConfigError
from metaalign.preferences import FAMILIES, QUESTIONS, Preference, obeyed, write_answer
from metaalign.preferences.wishes import are_obeyed

CONFIG = RecipesConfig(examples=2000, cases=60)


@pytest.fixture(scope="module")
def examples():
    return write_examples(CONFIG, seed=0, start=0, stop=2000)


def _preferences(text, tier):
    """The preferences that a tier's text states, found by their phrasings."""
    found = []
    for name, family in FAMILIES.items():
        parameters = family.parameters
        if name == "stance":
            parameters = {
                side
                for question in QUESTIONS.values()
                if question.kind == "opinion"
                for side in (question.subject, question.answer)
            }
        for parameter in parameters:
            preference = Preference(name, parameter)
            if any(phrasing in text for phrasing in preference.phrasings(tier)):
                found.append(preference)
    return found


def _question(example):
    (question,) = [q for q in QUESTIONS.values() if example.turns[0].text in q.phrasings]
    return question


def test_an_example_depends_on_seed_and_number_alone(examples):
    again = [
        example
        for start in range(0, 2000, 173)
        for example in write_examples(CONFIG, seed=0, start=start, stop=min(start + 173, 2000))
    ]
    assert again == examples
    assert write_examples(CONFIG, seed=1, start=0, stop=50) != examples[:50]


def test_every_example_is_valid_and_tagged(examples):
    for example in examples:
        example.validate()
        assert example.tags["recipe"] in RECIPES
        assert example.tags["split"] == "train"
    shares = Counter(example.tags["recipe"] for example in examples)
    assert all(abs(shares[name] / 2000 - share / 100) < 0.05 for name, share in RECIPES.items())


def test_neighbours_are_opposed_with_labels_flipped(examples):
    flipped = 0
    for first, second in zip(examples[::2], examples[1::2], strict=True):
        assert first.conversation == second.conversation
        assert first.turns == second.turns
        texts = [[response.text for response in e.responses] for e in (first, second)]
        flipped += texts[0] == texts[1][::-1]
        if first.tags["recipe"] in ("priority", "opinion") and first.tags["conflict"] != "silent":
            assert texts[0] == texts[1][::-1]
            assert (first.system_info, first.user_info) != (second.system_info, second.user_info)
    assert flipped > 600


def test_the_chosen_response_obeys_the_winner_and_the_rejected_does_not(examples):
    checked = 0
    for example in examples:
        if example.tags["recipe"] not in ("priority", "opinion"):
            continue
        question = _question(example)
        if example.tags["conflict"] == "silent":
            assert (example.system_info, example.user_info) == ("", "")
            default = write_answer(question, ())
            assert default == example.responses[0].text != example.responses[1].text
            continue
        system = _preferences(example.system_info, "system_info")
        winners = system or _preferences(example.user_info, "user_info")
        assert winners, example
        chosen, rejected = (response.text for response in example.responses)
        assert obeyed(question, winners, chosen), example
        assert not obeyed(question, winners, rejected), example
        checked += 1
    assert checked > 800


def test_no_example_mentions_a_held_out_combination(examples):
    mentioned = 0
    for example in examples:
        question = _question(example)
        for tier in ("system_info", "user_info"):
            for preference in _preferences(getattr(example, tier), tier):
                mentioned += 1
                assert not is_held_out(question, preference.family, seed=0, ratio=0.2), example
    assert mentioned > 2000


def test_a_family_and_its_opposite_are_held_out_together_and_a_fifth_is():
    drawn = [
        is_held_out(question, family, seed=0, ratio=0.2)
        for family in FAMILIES
        for question in questions_for(family)
    ]
    assert 0.17 < sum(drawn) / len(drawn) < 0.23
    for family in ("capitals", "hedged", "brief", "cautious"):
        for question in questions_for(family):
            opposite = FAMILIES[family].opposite
            assert is_held_out(question, family, seed=0, ratio=0.2) == is_held_out(
                question, opposite, seed=0, ratio=0.2
            )


def test_of_two_questions_that_ask_for_each_other_one_at_most_is_held_out():
    for family in ("capitals", "json", "language"):
        held = Counter(
            (question.couple, question.language)
            for question in questions_for(family)
            if is_held_out(question, family, seed=0, ratio=0.4)
        )
        assert held
        assert max(held.values()) == 1


def test_examples_past_the_training_ones_state_only_held_out_combinations():
    held_out = write_examples(CONFIG, seed=0, start=2000, stop=2060)
    mentioned = 0
    for example in held_out:
        assert example.tags["split"] == "held_out"
        question = _question(example)
        for tier in ("system_info", "user_info"):
            for preference in _preferences(getattr(example, tier), tier):
                mentioned += 1
                assert is_held_out(question, preference.family, seed=0, ratio=0.2), example
    assert mentioned > 60
    assert count_examples(CONFIG) == 2060


def test_a_closed_family_and_its_opposite_are_for_the_held_out_split_alone():
    closed = ("greeting", "hedged")
    train = write_examples(CONFIG, seed=0, start=0, stop=2000, closed=closed)
    held_out = write_examples(CONFIG, seed=0, start=2000, stop=2060, closed=closed)

    def stated(examples):
        return {
            preference.family
            for example in examples
            for tier in ("system_info", "user_info")
            for preference in _preferences(getattr(example, tier), tier)
        }

    axes = {"greeting", "hedged", "certain"}
    assert stated(train) == set(FAMILIES) - axes
    assert stated(held_out) & axes
    with pytest.raises(ConfigError, match="leaves a recipe no family for training"):
        write_examples(CONFIG, seed=0, start=0, stop=50, closed=tuple(FAMILIES))


def test_held_out_examples_say_what_training_never_sees() -> None:
    config = RecipesConfig(examples=400, cases=200)
    closed = ("hedged",)
    made = write_examples(config, seed=0, start=0, stop=600, closed=closed)
    for example in made[:400]:
        assert "unseen" not in example.tags
        assert example.tags["family"] not in ("hedged", "certain")
    for example in made[400:]:
        is_closed = example.tags["family"] in ("hedged", "certain")
        assert example.tags["unseen"] == ("family query" if is_closed else "query")
    assert any(example.tags.get("unseen", "").startswith("family") for example in made)


def test_the_better_answer_obeys_its_wishes_and_the_worse_one_does_not() -> None:
    made = write_examples(RecipesConfig(examples=400, cases=20), seed=0, start=0, stop=400)
    told = [example for example in made if "wishes" in example.tags]
    assert len(told) > 300
    for example in told:
        better, worse = (response.text for response in example.responses)
        assert are_obeyed(example.tags["wishes"], better)
        assert not are_obeyed(example.tags["wishes"], worse)
