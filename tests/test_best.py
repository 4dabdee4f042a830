"""The best measurement, and when to give up."""

from typing import get_args

import pytest

from metaalign.config.sections import BestMetric
from metaalign.train.loop.best import HIGHER_IS_BETTER, Best, next_best


def follow(metric: str, values: list[float]) -> list[tuple[int, float, int]]:
    """Step, value and measurements since of the best after each of the values."""
    best, found = None, []
    for step, value in enumerate(values, start=1):
        best = next_best(best, metric, value, step)
        found.append((best.step, best.value, best.measured_since))
    return found


def test_a_loss_is_better_lower_and_an_accuracy_higher() -> None:
    values = [0.5, 0.4, 0.4, 0.6]
    assert follow("loss", values) == [(1, 0.5, 0), (2, 0.4, 0), (2, 0.4, 1), (2, 0.4, 2)]
    assert follow("reward_accuracy", values) == [(1, 0.5, 0), (1, 0.5, 1), (1, 0.5, 2), (4, 0.6, 0)]


def test_what_is_not_a_number_is_never_best_for_long() -> None:
    nan = float("nan")
    assert follow("loss", [2.0, nan, 1.0]) == [(1, 2.0, 0), (1, 2.0, 1), (3, 1.0, 0)]
    assert follow("loss", [nan, 3.0])[1] == (2, 3.0, 0)


def test_another_metric_starts_the_search_anew() -> None:
    best = next_best(next_best(None, "loss", 0.1, 1), "reward_margin", -3.0, 2)
    assert (best.metric, best.step, best.value) == ("reward_margin", 2, -3.0)


@pytest.mark.parametrize(("patience", "tired"), [(None, False), (3, False), (2, True), (1, True)])
def test_patience_counts_measurements_without_a_better_one(
    patience: int | None, tired: bool
) -> None:
    assert Best("loss", 0.1, 4, measured_since=2).patience_exhausted(patience) is tired


def test_every_metric_of_the_config_has_a_direction_and_survives_a_checkpoint() -> None:
    assert set(get_args(BestMetric)) == set(HIGHER_IS_BETTER)
    best = Best("loss", 0.1, 4, measured_since=2)
    assert Best.from_plain(best.to_plain()) == best
    assert Best.from_plain(None) is None
