"""What makes an example invalid; which response SFT trains; which pairs are ordered."""

from dataclasses import replace
from math import inf, nan

import pytest

from metaalign.errors import RowError
from metaalign.examples import (
    Example,
    Response,
    Source,
    Turn,
    best_response,
    ordered_pairs,
)

PAIR = Example(
    turns=(Turn("user", "Hello"), Turn("assistant", "Good day"), Turn("user", "Lima?", "I am Ana")),
    responses=(Response("Yes", {"help": 1.0, "harm": None}), Response("No", {}, desirable=False)),
    source=Source("a.jsonl", 7),
    system_info="Be brief.",
    user_info="I am Bo.",
    weight=2.0,
    margin=0.5,
    order_by="help",
    tags={"recipe": "priority", "split": "train"},
    conversation="c-1",
)


def test_a_valid_example_passes() -> None:
    PAIR.validate()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"turns": ()}, "turns must end in a user's query"),
        ({"turns": PAIR.turns[:2]}, "turns must end in a user's query"),
        ({"turns": (Turn("user", " \n"),)}, "a user turn is empty"),
        ({"turns": PAIR.turns[1:]}, "the first turn must be the user's"),
        ({"turns": (Turn("user", "a"), Turn("user", "b"))}, "two user turns follow each other"),
        (
            {"turns": (Turn("user", "a"), Turn("assistant", "b", "info"), Turn("user", "c"))},
            "only a user's turn may update the user_info",
        ),
        ({"responses": ()}, "there is no response"),
        ({"responses": (Response("a"), Response(" "))}, "a response is empty"),
        ({"responses": (Response("a"), Response("a"))}, "two responses are equal"),
        ({"weight": 0.0}, "weight must be a positive number, got 0.0"),
        ({"weight": inf}, "weight must be a positive number, got inf"),
        ({"margin": nan}, "margin must be a finite number, got nan"),
        ({"user_info": "\ud800"}, "text is not valid UTF-8"),
    ],
)
def test_what_no_loss_could_use_is_refused(change: dict, reason: str) -> None:
    with pytest.raises(RowError) as error:
        replace(PAIR, **change).validate()
    assert str(error.value) == reason


def test_the_ordering_objective_alone_gives_the_order_scores() -> None:
    assert PAIR.order_scores() == [1.0, None]
    assert replace(PAIR, order_by="harm").order_scores() == [None, None]


@pytest.mark.parametrize(
    ("scores", "desirable", "best"),
    [
        ([1.0, 2.0, 0.0], [None] * 3, 1),
        ([1.0, 2.0, 0.0], [None, False, None], 0),  # the highest is marked undesirable
        ([2.0, 2.0], [None, True], 0),  # the first of equals
        ([None, -5.0], [None, None], 1),  # no score counts below every score
        ([None], [None], 0),
        ([None, None], [False, False], None),
    ],
)
def test_sft_trains_the_best_response_that_is_not_undesirable(
    scores: list, desirable: list, best: int | None
) -> None:
    assert best_response(scores, desirable) == best


def test_pairs_are_better_then_worse_without_ties_and_unjudged_ones() -> None:
    assert ordered_pairs([0.0, 2.0, 2.0, None]) == [(1, 0), (2, 0)]
    assert ordered_pairs([1.0, 1.0]) == []
