"""Algorithm 1 of MetaAligner, against pairs worked by hand."""

from collections.abc import Mapping
from typing import Any

import pytest

from metaalign.config.prepare import Recipe
from metaalign.data.recipes.edits import reformulate
from metaalign.data.sources.options import SourceOptions
from metaalign.errors import RowError
from metaalign.examples import Example, Response, Source, Turn

Scores = Mapping[str, float | None]


def example(*scores: Scores, row: int = 0) -> Example:
    return Example(
        turns=(Turn("user", "Q"),),
        responses=tuple(Response(f"y{k}", each) for k, each in enumerate(scores, 1)),
        source=Source("rows", row),
        system_info="s",
        user_info="u",
        tags={"split": "train"},
        conversation="c",
    )


def samples(recipe: Recipe, *scores: Scores, **settings: Any) -> set[tuple]:
    """(objectives, the answer that is edited, its target) of each sample."""
    made = reformulate(example(*scores), SourceOptions(recipe=recipe, wire="imhi", **settings))
    found = set()
    for one in made:
        one.validate()
        assert (one.system_info, one.user_info) == ("", "")
        assert one.tags == {"split": "train", "recipe": recipe, "family": "correction"}
        ((turn,), (target,)) = one.turns, one.responses
        told, query, answer, _ = turn.text.split(" | ")
        assert query == "Question: Q"
        direction = "better" if recipe == "contrastive" else "equal"
        start = f"Edit the following Question-Answer pair to make it {direction} considering "
        objectives = told.removeprefix(f"{start}the following objectives ").split("; ")
        found.add((frozenset(objectives), answer.removeprefix("Answer: "), target.text))
    assert len(found) == len(made)
    return found


MIXED = ({"a": 2.0, "b": 1.0, "c": 3.0, "d": 0.0}, {"a": 1.0, "b": 5.0, "c": 3.0, "d": 0.0})


def test_each_direction_is_told_the_objectives_that_it_wins() -> None:
    assert samples("contrastive", *MIXED) == {
        (frozenset({"a"}), "y2", "y1"),
        (frozenset({"b"}), "y1", "y2"),
    }


def test_equal_objectives_edit_the_second_answer_into_the_first() -> None:
    assert samples("equal", *MIXED) == {(frozenset({"c", "d"}), "y2", "y1")}


def test_the_warm_up_set_copies_the_answers_of_equal_samples() -> None:
    assert samples("warm_up", *MIXED) == {(frozenset({"c", "d"}), "y2", "y2")}


def test_every_pair_of_a_ranking_is_compared() -> None:
    assert samples("contrastive", {"a": 2.0}, {"a": 1.0}, {"a": 1.0}) == {
        (frozenset({"a"}), "y2", "y1"),
        (frozenset({"a"}), "y3", "y1"),
    }
    assert samples("equal", {"a": 2.0}, {"a": 1.0}, {"a": 1.0}) == {(frozenset({"a"}), "y3", "y2")}


@pytest.mark.parametrize(
    ("recipe", "scores"),
    [
        ("contrastive", ({"a": 1.0}, {"a": 1.0})),
        ("equal", ({"a": 2.0}, {"a": 1.0})),
        ("warm_up", ({"a": 2.0}, {"a": 1.0})),
        ("contrastive", ({"a": 2.0}, {"b": 1.0})),
        ("contrastive", ({"a": 2.0}, {"a": None})),
        ("contrastive", ({"preference": 1.0}, {"preference": 0.0})),
        ("contrastive", ({"a": 1.0},)),
    ],
)
def test_no_sample_has_an_empty_list_of_objectives(recipe: Recipe, scores: tuple) -> None:
    with pytest.raises(RowError, match=f"no two answers give a sample of the set {recipe}"):
        samples(recipe, *scores)


def test_objectives_are_said_as_the_settings_or_the_paper_say_them() -> None:
    given = (("preference", "Quality: be good"), ("a", "A: be a"))
    scores: list[Scores] = [
        dict.fromkeys(("preference", "a", "Honesty", "b"), score) for score in (1.0, 0.0)
    ]
    ((told, *_),) = samples("contrastive", *scores, objectives=given)
    assert told == {
        "Quality: be good",
        "A: be a",
        "Honesty: The response should not tell lies",
        "b",
    }


def test_objectives_are_shuffled_the_same_way_every_time() -> None:
    scores = [dict.fromkeys("abcde", score) for score in (1.0, 0.0)]

    def prompts(**settings: Any) -> list[str]:
        options = SourceOptions(recipe="contrastive", **settings)
        return [
            reformulate(example(*scores, row=row), options)[0].turns[0].text for row in range(9)
        ]

    assert prompts() == prompts()
    assert len(set(prompts())) > 5
    assert prompts(seed=1) != prompts()


def test_the_warm_up_set_is_a_share_of_the_equal_one() -> None:
    options, taken = SourceOptions(recipe="warm_up", warm_up_ratio=0.25), 0
    for row in range(400):
        try:
            taken += len(reformulate(example({"a": 1.0}, {"a": 1.0}, row=row), options))
        except RowError:
            continue
    assert 70 < taken < 130
