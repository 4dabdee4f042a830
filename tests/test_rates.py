"""Rates from verdicts, worked by hand."""

import pytest

from metaalign.data.recipes.cases import Case
from metaalign.evaluate.rates import build_report, interval
from metaalign.preferences import Preference

CAPITALS, BRIEF = Preference("capitals"), Preference("brief", "2")


def case(id: str, metric: str, **fields: object) -> Case:
    values = {
        "system_info": "",
        "user_info": "Please use capitals.",
        "query": "Capital of Peru?",
        "question": "unused",
        "wants": (CAPITALS,),
        "family": "capitals",
        "kind": "single",
    }
    return Case(id=id, metric=metric, **{**values, **fields})


CASES = [
    case("following-0", "following"),
    case("following-1", "following"),
    case("following-2", "following", system_info="Use capitals only.", user_info=""),
    case("following-3", "following", family="brief", wants=(BRIEF, CAPITALS), kind="double"),
    case("flip-0-0", "flip", pair="flip-0", kind=""),
    case("flip-0-1", "flip", pair="flip-0", kind=""),
    case("flip-1-0", "flip", pair="flip-1", kind=""),
    case("flip-1-1", "flip", pair="flip-1", kind=""),
    case("conflict-0", "conflict", system_info="Use capitals only.", kind="against"),
    case("hidden-0", "hidden", user_info=""),
    case("swapped-0", "swapped"),
]

AFTER = {
    "following-0": True,
    "following-1": True,
    "following-2": True,
    "following-3": False,
    "flip-0-0": True,
    "flip-0-1": True,
    "flip-1-0": True,
    "flip-1-1": False,
    "conflict-0": True,
    "hidden-0": False,
    "swapped-0": True,
}
BEFORE = dict.fromkeys(AFTER, False)


@pytest.fixture(scope="module")
def report() -> dict:
    return build_report(CASES, {"before": BEFORE, "after": AFTER}, best_constant=0.25)


def test_a_rate_is_the_share_of_cases_that_passed(report: dict) -> None:
    assert report["following"] == {"before": 0.0, "after": 0.75, "count": 4}
    assert report["conflict"] == {"before": 0.0, "after": 1.0, "count": 1}


def test_a_flip_counts_once_and_only_where_both_sides_are_right(report: dict) -> None:
    # flip-0 passes, flip-1 fails on one side; counting sides would give 3 of 4.
    assert report["flip"] == {"before": 0.0, "after": 0.5, "count": 2}


def test_bars_are_held_against_the_last_model(report: dict) -> None:
    assert report["best_constant"] == 0.25
    assert report["bars"] == {
        "following": {"at_least": 0.95, "met": False},
        "flip": {"at_least": 0.9, "met": False},
        "conflict": {"at_least": 0.95, "met": True},
        "hidden": {"at_most": 0.35, "met": True},
        "swapped": {"at_most": 0.1, "met": False},
    }


def test_families_and_kinds_carry_their_counts_and_the_worst_is_named(report: dict) -> None:
    assert report["families"]["following"] == {
        "brief": {"before": 0.0, "after": 0.0, "count": 1},
        "capitals": {"before": 0.0, "after": 1.0, "count": 3},
    }
    assert report["kinds"]["following"]["double"]["count"] == 1
    assert "flip" not in report["kinds"]  # flips have no kinds
    assert report["worst_family"] == {
        "family": "brief",
        "metric": "following",
        "rate": 0.0,
        "count": 1,
    }


def test_tiers_say_who_asked_for_what(report: dict) -> None:
    cells = {(cell["system"], cell["user"]): cell for cell in report["tiers"]}
    assert {said: (cell["after"], cell["count"]) for said, cell in cells.items()} == {
        ("silent", "asks"): (1.0, 2),
        ("asks", "silent"): (1.0, 1),
        ("asks", "opposes"): (1.0, 1),
        ("silent", "silent"): (0.0, 1),
        ("silent", "opposes"): (1.0, 1),
    }


def test_wilsons_interval_of_eight_of_ten() -> None:
    # p = 0.8, n = 10, z = 1.95996: centre (0.8 + z2/20) / (1 + z2/10) = 0.7167,
    # half width z / (1 + z2/10) * sqrt(0.8 * 0.2 / 10 + z2/400) = 0.2266.
    assert interval([True] * 8 + [False] * 2) == pytest.approx([0.4902, 0.9433], abs=1e-4)
    assert interval([False] * 5)[0] == 0.0


def test_metrics_without_cases_are_left_out() -> None:
    only = build_report(CASES[:2], {"after": AFTER}, best_constant=None)
    assert set(only["intervals"]) == set(only["bars"]) == {"following"}
    assert only["best_constant"] is None
