"""Draws the figures of a report with matplotlib. Writes no files."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#b8bec6", "#6aa5d8", "#1f5a96", "#e08e3c", "#7d9b52", "#8b6bb1")

HELD_OUT_TITLES = {
    "sft_loss": "sft_loss\nnats per target token; lower is better",
    "pairs_in_order": "pairs_in_order\nshare; dashed: chance",
    "reward_margin": "reward_margin\nnats; higher is better",
}
"""Title of each panel of the held-out figure."""

CHANCE = 0.5
"""Expected share of pairs in order for a model that guesses."""


def metrics_figure(report: Mapping[str, Any]) -> Figure:
    """One group of bars per metric, one bar per model, with intervals and the target rate."""
    models, metrics = list(report["models"]), list(report["intervals"])
    figure = Figure(figsize=(9.5, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(models)
    for number, model in enumerate(models):
        places = [place - 0.4 + (number + 0.5) * width for place in range(len(metrics))]
        _bars_with_intervals(axes, report, model, places, width, COLOURS[number % len(COLOURS)])
    for place, metric in enumerate(metrics):
        _draw_target(axes, report["bars"].get(metric), place)
    labels = [f"{metric}\n{report[metric]['count']} cases" for metric in metrics]
    axes.set_xticks(range(len(metrics)), labels)
    axes.set_ylim(0, 1.12)
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axes.set_ylabel("rate")
    axes.set_title("Rates by metric (95% intervals; dashed: target rate)", loc="left")
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
    # Rounding may put an end of the interval slightly on the wrong side of the rate.
    below = [max(0.0, rate - low) for rate, (low, _) in zip(rates, intervals, strict=True)]
    above = [max(0.0, high - rate) for rate, (_, high) in zip(rates, intervals, strict=True)]
    axes.bar(places, rates, width, color=colour, label=model)
    axes.errorbar(
        places, rates, yerr=[below, above], fmt="none", ecolor="#333333", elinewidth=1, capsize=2
    )
    for place, rate, more in zip(places, rates, above, strict=True):
        axes.text(place, rate + more + 0.01, f"{rate:.2f}", ha="center", va="bottom", fontsize=8)


def _draw_target(axes: Axes, bar: Mapping[str, Any] | None, place: float) -> None:
    """A dashed line at the rate that a metric should reach, or should not exceed."""
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
    """The rate of following by family, the highest at the top, one bar per model."""
    models = list(report["models"])
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


def held_out_figure(report: Mapping[str, Any]) -> Figure:
    """One panel per metric of the held-out examples, with one bar and interval per model.

    In the panels of rewards, the reference has no bar.
    """
    held_out = report["held_out"]
    metrics = list(held_out["intervals"])
    figure = Figure(figsize=(1 + 3.4 * len(metrics), 4.2), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        _held_out_panel(axes, held_out, metric, list(report["models"]))
    figure.suptitle("Held-out examples (95% intervals)", x=0.01, ha="left")
    return figure


def _held_out_panel(
    axes: Axes, held_out: Mapping[str, Any], metric: str, models: Sequence[str]
) -> None:
    intervals = held_out["intervals"][metric]
    for place, model in enumerate(models):
        if intervals[model] is None:
            _write_above(axes, place, 0.0, "reference")
        else:
            _bar_with_interval(axes, place, held_out[metric][model], intervals[model])
    if metric == "pairs_in_order":
        axes.axhline(CHANCE, color="#b3261e", linestyle="--", linewidth=1.2)
        axes.set_ylim(0, 1.12)
        axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    else:
        axes.axhline(0, color="#333333", linewidth=0.8)
        axes.margins(y=0.12)
    axes.set_xticks(range(len(models)), models)
    axes.set_xlim(-0.6, len(models) - 0.4)
    axes.set_title(f"{HELD_OUT_TITLES[metric]}\n{held_out[metric]['count']} examples", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def _bar_with_interval(axes: Axes, place: int, value: float, interval: Sequence[float]) -> None:
    low, high = interval
    axes.bar(place, value, 0.7, color=COLOURS[place % len(COLOURS)])
    error = [[max(0.0, value - low)], [max(0.0, high - value)]]
    axes.errorbar(place, value, yerr=error, fmt="none", ecolor="#333333", elinewidth=1, capsize=3)
    _write_above(axes, place, max(high, 0.0), f"{value:.3f}")


def _write_above(axes: Axes, place: int, height: float, text: str) -> None:
    offset = {"xytext": (0, 4), "textcoords": "offset points"}
    axes.annotate(text, (place, height), **offset, ha="center", fontsize=8)
