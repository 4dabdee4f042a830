"""What an error suggests for an unknown name."""

import pytest

from metaalign.errors import did_you_mean

KNOWN = ["seed", "optimizer.learning_rate", "optimizer.name", "length.max_steps"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("optimizer.learning_rat", "optimizer.learning_rate"),
        ("optimizer.lr", "optimizer.learning_rate"),
        ("length.ms", "length.max_steps"),
        ("sed", "seed"),
    ],
)
def test_a_name_that_is_mistyped_or_abbreviated_gets_the_known_one(name: str, meant: str) -> None:
    assert did_you_mean(name, KNOWN) == f" (did you mean {meant}?)"


@pytest.mark.parametrize("name", ["lr", "batch.lr", "quantization", ""])
def test_a_name_unlike_any_known_one_gets_no_suggestion(name: str) -> None:
    assert did_you_mean(name, KNOWN) == ""
