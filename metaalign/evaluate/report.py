"""A report as files a person reads: JSON, Markdown tables, plots, and the console's tables.

Knows no model: it shows what `rates.py` counted.
"""

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table as RichTable

COLOURS = ("#b8bec6", "#6aa5d8", "#1f5a96", "#e08e3c", "#7d9b52", "#8b6bb1")

TIER_WORDS = {"asks": "asks for it", "opposes": "for the opposite", "silent": "is silent"}


class Table(NamedTuple):
    """A table: the first column is text, the others are numbers already written out."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def write_report(
    report: Mapping[str, Any], answers: Iterable[Mapping[str, Any]], folder: Path
) -> list[Path]:
    """Write every file of the report; report.json last, whole or not at all.

    Args:
        answers: The lines of answers.jsonl.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "answers.jsonl", folder / "report.md", folder / "metrics.png"]
    files += [folder / "families.png", folder / "report.json"]
    lines = [json.dumps(answer, ensure_ascii=False) for answer in answers]
    files[0].write_text("\n".join([*lines, ""]), encoding="utf-8")
    files[1].write_text(markdown(report), encoding="utf-8")
    metrics_figure(report).savefig(files[2])
    families_figure(report).savefig(files[3])
    partial = folder / "report.json.partial"
    partial.write_text(json.dumps(report, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, files[4])
    return files


def show_report(report: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the tables."""
    console = console or Console(width=None if sys.stdout.isatty() else 120)
    for table in tables(report):
        shown = RichTable(title=table.title, title_justify="left")
        for number, column in enumerate(table.columns):
            shown.add_column(column, justify="left" if number == 0 else "right")
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)
    console.print(_worst_line(report))


def markdown(report: Mapping[str, Any]) -> str:
    """The tables as Markdown."""
    parts = ["# Evaluation", "", _worst_line(report)]
    for table in tables(report):
        head = ["| " + " | ".join(table.columns) + " |"]
        head.append("|" + " --- |" + " ---: |" * (len(table.columns) - 1))
        body = ["| " + " | ".join(row) + " |" for row in table.rows]
        parts += ["", f"## {table.title}", "", *head, *body]
    return "\n".join([*parts, ""])


def tables(report: Mapping[str, Any]) -> list[Table]:
    """Metrics with their intervals and bars, families, kinds and tier against tier."""
    models = model_names(report)
    shown = [_metrics_table(report, models), _families_table(report, models[-1])]
    kinds = [
        [f"{metric}: {kind}", *_rates(rates, models)]
        for metric, own in report["kinds"].items()
        for kind, rates in own.items()
    ]
    if kinds:
        shown.append(Table("By kind of case", ["kind", *models, "count"], kinds))
    tiers = [[_tiers_words(cell), *_rates(cell, models)] for cell in report["tiers"]]
    title = "Tier against tier: how often the preference is obeyed"
    return [*shown, Table(title, ["who says what", *models, "count"], tiers)]


def model_names(report: Mapping[str, Any]) -> list[str]:
    """The models of a report, in the order in which they were given."""
    return list(next(iter(report["intervals"].values())))


def _metrics_table(report: Mapping[str, Any], models: Sequence[str]) -> Table:
    rows = []
    for metric, intervals in report["intervals"].items():
        cells = [
            f"{report[metric][model]:.3f} ({intervals[model][0]:.2f}-{intervals[model][1]:.2f})"
            for model in models
        ]
        bar = _bar_words(report["bars"].get(metric))
        rows.append([metric, *cells, str(report[metric]["count"]), bar])
    title = "Rates (95% interval)"
    if report["best_constant"] is not None:
        title += f"; deaf to the meta-prompt at best {report['best_constant']:.3f}"
    return Table(title, ["metric", *models, "count", f"bar for {models[-1]}"], rows)


def _families_table(report: Mapping[str, Any], model: str) -> Table:
    families = report["families"]
    names = sorted({family for own in families.values() for family in own})
    rows = [
        [name, *(_rate_of(own.get(name), model) for own in families.values())] for name in names
    ]
    return Table(f"By family, {model} (cases)", ["family", *families], rows)


def _rate_of(rates: Mapping[str, Any] | None, model: str) -> str:
    return f"{rates[model]:.3f} ({rates['count']})" if rates else "-"


def _tiers_words(cell: Mapping[str, Any]) -> str:
    return f"system {TIER_WORDS[cell['system']]}, user {TIER_WORDS[cell['user']]}"


def _rates(rates: Mapping[str, Any], models: Sequence[str]) -> list[str]:
    return [*(f"{rates[model]:.3f}" for model in models), str(rates["count"])]


def _bar_words(bar: Mapping[str, Any] | None) -> str:
    if bar is None:
        return ""
    limit = f">= {bar['at_least']:.2f}" if "at_least" in bar else f"<= {bar['at_most']:.2f}"
    return f"{limit} {'met' if bar['met'] else 'MISSED'}"


def _worst_line(report: Mapping[str, Any]) -> str:
    worst = report["worst_family"]
    if not worst:
        return "No family was asked for."
    return (
        f"Worst family of {model_names(report)[-1]}: {worst['family']}, {worst['metric']} "
        f"{worst['rate']:.3f} over {worst['count']}."
    )


def metrics_figure(report: Mapping[str, Any]) -> Figure:
    """Every metric as a group of bars, one a model, with intervals and the bar to reach."""
    models, metrics = model_names(report), list(report["intervals"])
    figure = Figure(figsize=(9.5, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(models)
    for number, model in enumerate(models):
        places = [place - 0.4 + (number + 0.5) * width for place in range(len(metrics))]
        _bars_with_intervals(axes, report, model, places, width, COLOURS[number % len(COLOURS)])
    for place, metric in enumerate(metrics):
        _draw_bar(axes, report["bars"].get(metric), place)
    labels = [f"{metric}\n{report[metric]['count']} cases" for metric in metrics]
    axes.set_xticks(range(len(metrics)), labels)
    axes.set_ylim(0, 1.12)
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axes.set_ylabel("rate")
    axes.set_title("Does it do what it is told? (95% intervals; dashed: bar to reach)", loc="left")
    axes.legend(loc="upper right", ncols=len(models), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _bars_with_intervals(
    axes: Axes,
    report: Mapping[str, Any],
    model: str,
    places: Sequence[float],
    width: float,
    colour: str,
) -> None:
    rates = [report[metric][model] for metric in report["intervals"]]
    intervals = [own[model] for own in report["intervals"].values()]
    # Rounding may put an end of the interval a hair on the wrong side of the rate.
    below = [max(0.0, rate - low) for rate, (low, _) in zip(rates, intervals, strict=True)]
    above = [max(0.0, high - rate) for rate, (_, high) in zip(rates, intervals, strict=True)]
    axes.bar(places, rates, width, color=colour, label=model)
    axes.errorbar(
        places, rates, yerr=[below, above], fmt="none", ecolor="#333333", elinewidth=1, capsize=2
    )
    for place, rate, more in zip(places, rates, above, strict=True):
        axes.text(place, rate + more + 0.01, f"{rate:.2f}", ha="center", va="bottom", fontsize=8)


def _draw_bar(axes: Axes, bar: Mapping[str, Any] | None, place: float) -> None:
    if bar is None:
        return
    limit = bar.get("at_least", bar.get("at_most"))
    axes.hlines(limit, place - 0.46, place + 0.46, colors="#b3261e", linestyles="--", linewidth=1.2)
    sign = "≥" if "at_least" in bar else "≤"
    axes.text(
        place - 0.47,
        limit,
        f"{sign} {limit:.2f}",
        ha="left",
        va="bottom",
        fontsize=8,
        color="#b3261e",
    )


def families_figure(report: Mapping[str, Any]) -> Figure:
    """Following by family, the best on top, one bar a model."""
    models = model_names(report)
    metric = "following" if "following" in report["families"] else next(iter(report["families"]))
    families = report["families"][metric]
    names = sorted(families, key=lambda name: (families[name][models[-1]], name))
    figure = Figure(figsize=(8, 1.6 + 0.42 * len(names)), dpi=150, layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(models)
    for number, model in enumerate(models):
        places = [place + 0.4 - (number + 0.5) * height for place in range(len(names))]
        rates = [families[name][model] for name in names]
        axes.barh(places, rates, height, color=COLOURS[number % len(COLOURS)], label=model)
    for place, name in enumerate(names):
        rate = f"{families[name][models[-1]]:.2f}"
        axes.text(1.02, place, rate, va="center", fontsize=8, color="#333333")
    labels = [f"{name} ({families[name]['count']})" for name in names]
    axes.set_yticks(range(len(names)), labels)
    axes.set_ylim(-0.7, len(names) - 0.3)
    axes.set_xlim(0, 1.08)
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axes.set_xlabel("rate")
    axes.set_title(
        f"{metric.capitalize()} by family (cases); on the right: {models[-1]}", loc="left"
    )
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=len(models), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
