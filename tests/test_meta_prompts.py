"""Real examples under meta-prompts: opposed ones flip, the winner is obeyed, unseen is unseen."""

from collections import Counter
from dataclasses import replace
from typing import Any, Literal

import pytest

from metaalign.data.recipes.meta_prompts import put_under
from metaalign.data.sources.options import SourceOptions
from metaalign.errors import RowError
from metaalign.examples import Example, Response, Source, Turn
from metaalign.preferences.backgrounds import ASSISTANTS, PEOPLE
from metaalign.preferences.instructions import INSTRUCTIONS, Wish

TEXT = (
    "Bees make honey, which they store for the winter. They also pollinate flowers! A hive may "
    "hold 50,000 bees. Most of them are workers. The queen lays the eggs."
)


def example(row: int, *answers: Response, split: str = "train") -> Example:
    return Example(
        turns=(Turn("user", f"Question {row}?"),),
        responses=answers,
        source=Source("rows.jsonl", row),
        tags={"split": split},
        conversation=f"c{row}",
    )


PAIR = (Response("No.", {"preference": 1.0}), Response("Sure.", {"preference": 0.0}))


def made(
    recipe: Literal["helpful", "consensus", "priority"],
    *answers: Response,
    count: int = 300,
    split: str = "train",
    **settings: Any,
) -> list[list[Example]]:
    options = SourceOptions(recipe=recipe, **settings)
    return [put_under(example(row, *answers, split=split), options) for row in range(count)]


def said_by(meta_prompt: str, tier: str) -> list[Wish]:
    """The wishes that a tier states."""
    wishes = [Wish(name, each) for name, told in INSTRUCTIONS.items() for each in told.parameters]
    return [
        wish for wish in wishes if any(meta_prompt.endswith(form) for form in wish.phrasings(tier))
    ]


def test_safety_first_and_helpfulness_first_flip_a_pair() -> None:
    tiers = Counter()
    for safe, helpful in made("helpful", *PAIR):
        assert [each.text for each in safe.responses] == ["No.", "Sure."]
        assert [each.text for each in helpful.responses] == ["Sure.", "No."]
        for one in (safe, helpful):
            assert one.order_scores() == [1.0, 0.0]
            assert one.conversation == safe.conversation
            assert (one.tags["recipe"], one.tags["family"]) == ("helpful", "safety")
        differ = [
            tier for tier in ("system_info", "user_info")
            if getattr(safe, tier) != getattr(helpful, tier)
        ]  # fmt: skip
        assert len(differ) == 1
        tiers.update(differ)
    assert 70 < tiers["system_info"] < 130


def test_the_recipe_helpful_wants_ordered_pairs() -> None:
    for answers in (PAIR[:1], [replace(each, scores={}) for each in PAIR]):
        with pytest.raises(RowError, match="helpful needs pairs of a better and a worse answer"):
            made("helpful", *answers, count=1)


def test_a_background_changes_nothing_about_consensus() -> None:
    for bare, told in made("consensus", *PAIR):
        assert bare.responses == told.responses == PAIR
        assert bare.user_info == ""
        assert told.user_info in PEOPLE
        assert bare.system_info == told.system_info
        assert bare.system_info in ("", *ASSISTANTS)


def test_the_system_wins_over_the_user_in_every_cell_of_the_matrix() -> None:
    cells = Counter()
    for pair in made("priority", Response(TEXT), count=600):
        for one in pair:
            cell, family = one.tags["conflict"], one.tags["family"]
            chosen, rejected = (response.text for response in one.responses)
            system, user = (
                said_by(one.system_info, "system_info"),
                said_by(one.user_info, "user_info"),
            )
            cells[cell] += 1
            assert [bool(system), bool(user)] == {
                "against": [True, True], "agree": [True, True], "system": [True, False],
                "user": [False, True], "silent": [False, False],
            }[cell]  # fmt: skip
            if cell == "silent":
                assert chosen == TEXT
                continue
            (winner,) = system or user
            assert winner.instruction == family
            assert winner.is_obeyed(chosen)
            assert not winner.is_obeyed(rejected)
            if cell == "against":
                assert user[0] in winner.opposites()
                assert user[0].is_obeyed(rejected)
    assert set(cells) == {"against", "agree", "system", "user", "silent"}
    assert cells["against"] > 600


def test_the_two_sides_of_a_wish_hold_the_same_answers_the_other_way_round() -> None:
    for pair in made("priority", Response(TEXT)):
        if pair[0].tags["conflict"] != "silent":
            first, second = ([each.text for each in one.responses] for one in pair)
            assert first == second[::-1]


def test_the_best_answer_that_is_not_undesirable_is_the_one_that_obeys() -> None:
    answers = (Response("x", {"preference": 2.0}, False), Response(TEXT, {"preference": 1.0}))
    for pair in made("priority", *answers, count=40):
        assert all("x" not in (each.text for each in one.responses) for one in pair)
    with pytest.raises(RowError, match="needs an answer that is not undesirable"):
        made("priority", answers[0], count=1)
    with pytest.raises(RowError, match="has no instruction that this answer can be edited to obey"):
        made("priority", Response(TEXT), count=1, held_out_families=tuple(INSTRUCTIONS))


@pytest.mark.parametrize("recipe", ["helpful", "priority"])
def test_training_never_sees_what_the_held_out_split_says(
    recipe: Literal["helpful", "priority"],
) -> None:
    answers = PAIR if recipe == "helpful" else (Response(TEXT),)
    train, held = (
        [one for pair in made(recipe, *answers, split=split, count=800) for one in pair]
        for split in ("train", "held_out")
    )
    assert not any("unseen" in one.tags for one in train)
    kinds = {kind for one in held for kind in one.tags.get("unseen", "").split()}
    assert kinds == (
        {"query", "phrasing"} if recipe == "helpful" else {"query", "phrasing", "parameter"}
    )
    for tier in ("system_info", "user_info"):
        said = {wish for one in train for wish in said_by(getattr(one, tier), tier)}
        for wish in said:
            parameters = INSTRUCTIONS[wish.instruction].parameters
            assert len(parameters) < 3 or wish.parameter != parameters[-1]
            last = wish.phrasings(tier)[-1]
            assert not any(getattr(one, tier).endswith(last) for one in train)
    seen = {(one.system_info, one.user_info) for one in train}
    for one in held:
        if "phrasing" in one.tags.get("unseen", ""):
            assert (one.system_info, one.user_info) not in seen


def test_a_held_out_family_and_its_opposite_are_for_the_held_out_split_alone() -> None:
    closed = ("punctuation:no_comma", "startend:end_checker")
    axis = {*closed, "plain:commas"}
    for split in ("train", "held_out"):
        pairs = made("priority", Response(TEXT), split=split, held_out_families=closed)
        ones = [one for pair in pairs for one in pair]
        of_axis = [one for one in ones if one.tags["family"] in axis]
        assert bool(of_axis) == (split == "held_out")
        for one in ones:
            unseen = one.tags.get("unseen", "").split()
            assert ("family" in unseen) == (one.tags["family"] in axis)


def test_an_example_depends_on_seed_conversation_and_row_alone() -> None:
    first, again = (
        made("priority", Response(TEXT), count=20),
        made("priority", Response(TEXT), count=20),
    )
    assert first == again
    assert made("priority", Response(TEXT), count=20, seed=1) != first
    assert len({tuple(one.tags.items()) for pair in first for one in pair}) > 5
