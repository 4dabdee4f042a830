"""A report's files, as someone would read them."""

import io
import json
from pathlib import Path

import matplotlib.image
import pytest
from rich.console import Console

from metaalign.evaluate.plots import families_figure, held_out_figure, metrics_figure
from metaalign.evaluate.report import markdown, show_report, write_report

REPORT = {
    "models": {"before": "initial", "after": "model"},
    "following": {"before": 0.0, "after": 0.75, "count": 4},
    "hidden": {"before": 0.25, "after": 0.5, "count": 4},
    "best_constant": 0.25,
    "bars": {
        "following": {"at_least": 0.95, "met": False},
        "hidden": {"at_most": 0.35, "met": False},
    },
    "intervals": {
        "following": {"before": [0.0, 0.49], "after": [0.3, 0.95]},
        "hidden": {"before": [0.05, 0.7], "after": [0.15, 0.85]},
    },
    "families": {
        "following": {
            "brief": {"before": 0.0, "after": 0.5, "count": 2},
            "capitals": {"before": 0.0, "after": 1.0, "count": 2},
        },
        "hidden": {"brief": {"before": 0.25, "after": 0.5, "count": 4}},
    },
    "kinds": {"following": {"double": {"before": 0.0, "after": 0.5, "count": 2}}},
    "tiers": [{"system": "asks", "user": "opposes", "before": 0.0, "after": 1.0, "count": 3}],
    "worst_family": {"family": "brief", "metric": "following", "rate": 0.5, "count": 2},
}

HELD_OUT = {
    "sft_loss": {"before": 2.31, "after": 2.125, "count": 68},
    "pairs_in_order": {"before": None, "after": 0.6912, "count": 60},
    "reward_margin": {"before": None, "after": -0.25, "count": 60},
    "intervals": {
        "sft_loss": {"before": [2.2, 2.4], "after": [2.0, 2.3]},
        "pairs_in_order": {"before": None, "after": [0.57, 0.79]},
        "reward_margin": {"before": None, "after": [-0.5, 0.1]},
    },
    "reference": {"model": "before", "folder": "/runs/initial", "reason": "dpo started from it"},
    "examples": {
        "sft_loss": {"in": 100, "out": 68, "no_best_response": 0, "too_long_response": 32}
    },
}
PAIRS_ALONE = {"models": REPORT["models"], "held_out": HELD_OUT}


def test_the_tables_hold_rates_intervals_counts_and_bars() -> None:
    text = markdown(REPORT)
    assert "| following | 0.000 (0.00-0.49) | 0.750 (0.30-0.95) | 4 | >= 0.95 MISSED |" in text
    assert "| hidden | 0.250 (0.05-0.70) | 0.500 (0.15-0.85) | 4 | <= 0.35 MISSED |" in text
    assert "hidden without reading the meta-prompt: at most 0.250" in text
    assert "| capitals | 1.000 (2) | - |" in text
    assert "| following: double | 0.000 | 0.500 | 2 |" in text
    assert "| system asks for it, user for the opposite | 0.000 | 1.000 | 3 |" in text
    assert "Worst family of after: brief, following 0.500 over 2." in text


def test_held_out_examples_are_told_with_their_reference_and_what_was_left_out() -> None:
    text = markdown(PAIRS_ALONE)
    loss = "| sft_loss (nats per token) | 2.310 (2.200 to 2.400) | 2.125 (2.000 to 2.300) | 68 |"
    assert loss in text
    assert "| pairs_in_order (share) | - (the reference) | 0.691 (0.570 to 0.790) | 60 |" in text
    assert "| reward_margin (nats) | - (the reference) | -0.250 (-0.500 to 0.100) | 60 |" in text
    assert "are measured against before (/runs/initial): dpo started from it." in text
    assert "Measured 68 of 100 held-out examples; not measured: too_long_response 32." in text
    assert "family" not in text, "no case was asked"


def test_a_report_without_a_reference_says_so_and_one_without_pairs_too() -> None:
    plain = {**PAIRS_ALONE, "held_out": {**HELD_OUT, "reference": None}}
    assert "compare plain log-probabilities. To compare rewards, set `reference`" in markdown(plain)
    loss = {key: HELD_OUT[key] for key in ("sft_loss", "examples")}
    loss["intervals"] = {"sft_loss": HELD_OUT["intervals"]["sft_loss"]}
    text = markdown({**PAIRS_ALONE, "held_out": loss})
    assert "The held-out examples have no pairs" in text
    assert "reward_margin" not in text


def test_every_row_of_a_table_has_as_many_cells_as_its_head() -> None:
    tables = markdown(REPORT).split("\n\n")
    heads = [block for block in tables if block.startswith("|")]
    assert len(heads) == 4
    for block in heads:
        assert len({line.count(" |") for line in block.splitlines() if "---" not in line}) == 1


def test_the_console_shows_the_same_numbers() -> None:
    console = Console(file=io.StringIO(), width=120)
    show_report(REPORT, console)
    shown = console.file.getvalue()
    assert "0.750 (0.30-0.95)" in shown
    assert "Worst family of after: brief" in shown


def test_the_files_are_written_whole(tmp_path: Path) -> None:
    answers = [{"id": "a", "answer": "día\u2028x"}, {"id": "b", "answer": ""}]
    files = write_report(REPORT, answers, tmp_path / "evaluation")
    assert [file.name for file in files] == [
        "answers.jsonl",
        "report.md",
        "metrics.png",
        "families.png",
        "report.json",
    ]
    assert sorted(file.name for file in (tmp_path / "evaluation").iterdir()) == sorted(
        file.name for file in files
    )
    assert json.loads(files[4].read_text(encoding="utf-8")) == REPORT
    lines = files[0].read_text(encoding="utf-8").split("\n")
    assert [json.loads(line) for line in lines if line] == answers
    for file in files[2:4]:
        assert matplotlib.image.imread(file).std() > 0.05  # something is drawn


def test_names_with_brackets_are_printed_as_they_are() -> None:
    console = Console(record=True, width=200, file=io.StringIO())
    folder, named = "/mnt/runs[/a]/sft", dict(PAIRS_ALONE["held_out"])
    named["reference"] = {"model": None, "folder": folder, "reason": "the start"}
    families = {"following": {"[b]": REPORT["families"]["following"]["brief"]}}
    show_report({**REPORT, "held_out": named, "families": families}, console)
    text = console.export_text()
    assert folder in text
    assert "[b]" in text


def test_a_report_of_held_out_examples_removes_what_an_earlier_one_left(tmp_path: Path) -> None:
    write_report({**REPORT, "held_out": HELD_OUT}, [{"id": "a"}], tmp_path)
    assert len(list(tmp_path.iterdir())) == 6
    files = write_report(PAIRS_ALONE, [], tmp_path)
    assert [file.name for file in files] == ["report.md", "held_out.png", "report.json"]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert matplotlib.image.imread(files[1]).std() > 0.05


def test_the_held_out_plot_has_a_panel_a_metric_and_no_bar_for_the_reference() -> None:
    panels = held_out_figure(PAIRS_ALONE).axes
    heights = [[float(patch.get_height()) for patch in axes.patches] for axes in panels]
    assert heights == [[2.31, 2.125], [0.6912], [-0.25]]
    assert [text.get_text() for text in panels[1].texts] == ["reference", "0.691"]


def test_the_plot_draws_each_rate_at_its_height() -> None:
    axes = metrics_figure(REPORT).axes[0]
    heights = [round(float(patch.get_height()), 4) for patch in axes.patches]
    assert heights == [0.0, 0.25, 0.75, 0.5]  # before: following, hidden; after: the same
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["before", "after"]
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "following\n4 cases",
        "hidden\n4 cases",
    ]


def test_families_are_sorted_by_the_last_model_with_the_best_on_top() -> None:
    axes = families_figure(REPORT).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["brief (2)", "capitals (2)"]
    widths = [round(float(patch.get_width()), 4) for patch in axes.patches]
    assert widths == [0.0, 0.0, 0.5, 1.0]


@pytest.mark.parametrize("names", [["only"], ["a", "b", "c", "d", "e", "f", "g"]])
def test_one_model_or_many_can_be_plotted(names: list[str]) -> None:
    def renamed(rates: dict) -> dict:
        return {**dict.fromkeys(names, rates["after"]), "count": rates["count"]}

    report = {
        **REPORT,
        "models": dict.fromkeys(names, "model"),
        **{metric: renamed(REPORT[metric]) for metric in ("following", "hidden")},
        "intervals": {
            metric: dict.fromkeys(names, own["after"])
            for metric, own in REPORT["intervals"].items()
        },
        "families": {"following": {"brief": renamed(REPORT["families"]["following"]["brief"])}},
    }
    assert len(metrics_figure(report).axes[0].patches) == 2 * len(names)
    assert len(families_figure(report).axes[0].patches) == len(names)
