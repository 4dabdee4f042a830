"""Writes a report as JSON, Markdown and plots, and prints its tables.

Computes nothing itself: `rates.py` and `held_out.py` do.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from metaalign.evaluate.plots import families_figure, held_out_figure, metrics_figure
from metaalign.folders import write_whole

METRIC_WORDS = {
    "sft_loss": "sft_loss (nats per token)",
    "pairs_in_order": "pairs_in_order (share)",
    "reward_margin": "reward_margin (nats)",
}

TIER_WORDS = {"asks": "asks for it", "opposes": "for the opposite", "silent": "is silent"}


class Table(NamedTuple):
    """A table of strings: the first column is text, the others are formatted numbers."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def write_report(
    report: Mapping[str, Any], answers: Iterable[Mapping[str, Any]], folder: Path
) -> list[Path]:
    """Write every file of the report, report.json last and atomically.

    Files of an earlier report that this one does not have, such as the plots of cases, are deleted.

    Args:
        answers: The lines of answers.jsonl, which is written only if the report has cases.

    Returns:
        The files that were written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"report.md": markdown(report)}
    figures = {}
    if _has_cases(report):
        lines = [json.dumps(answer, ensure_ascii=False) for answer in answers]
        texts = {"answers.jsonl": "\n".join([*lines, ""]), **texts}
        figures = {"metrics.png": metrics_figure(report), "families.png": families_figure(report)}
    if "held_out" in report:
        figures["held_out.png"] = held_out_figure(report)
    for name in _OPTIONAL - {*texts, *figures}:
        (folder / name).unlink(missing_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    for name, figure in figures.items():
        figure.savefig(folder / name)
    text = json.dumps(report, ensure_ascii=False, indent=2) + "\n"
    write_whole(folder / "report.json", text)
    return [folder / name for name in (*texts, *figures, "report.json")]


_OPTIONAL = {"answers.jsonl", "metrics.png", "families.png", "held_out.png"}


def show_report(report: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the tables and remarks to the console, names with brackets as they are."""
    console = console or Console(width=None if sys.stdout.isatty() else 120)
    for table in tables(report):
        console.print(as_rich(table), markup=False)
    for line in _remarks(report):
        console.print(line, markup=False)


def as_rich(table: Table) -> RichTable:
    """Convert a table to one of the rich package."""
    title = Text(table.title, style="table.title")  # a str would be read as markup
    shown = RichTable(title=title, title_justify="left")
    for number, column in enumerate(table.columns):
        shown.add_column(column, justify="left" if number == 0 else "right")
    for row in table.rows:
        shown.add_row(*row)
    return shown


def markdown(report: Mapping[str, Any]) -> str:
    """The remarks and tables as Markdown."""
    parts = ["# Evaluation"]
    for line in _remarks(report):
        parts += ["", line]
    for table in tables(report):
        head = ["| " + " | ".join(table.columns) + " |"]
        head.append("|" + " --- |" + " ---: |" * (len(table.columns) - 1))
        body = ["| " + " | ".join(row) + " |" for row in table.rows]
        parts += ["", f"## {table.title}", "", *head, *body]
    return "\n".join([*parts, ""])


def tables(report: Mapping[str, Any]) -> list[Table]:
    """The tables of the report: held-out examples, then for the cases metrics, families, kinds and
    tier against tier. Tables without data are omitted."""
    models = list(report["models"])
    shown = [held_out_table(report)] if "held_out" in report else []
    if not _has_cases(report):
        return shown
    shown += [_metrics_table(report, models), _families_table(report, models[-1])]
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


def _has_cases(report: Mapping[str, Any]) -> bool:
    return "bars" in report


def held_out_table(report: Mapping[str, Any]) -> Table:
    """The metrics of the held-out examples, with intervals, one column per model."""
    held_out, models = report["held_out"], list(report["models"])
    rows = []
    for metric, intervals in held_out["intervals"].items():
        cells = [_with_interval(held_out[metric][model], intervals[model]) for model in models]
        rows.append([METRIC_WORDS[metric], *cells, str(held_out[metric]["count"])])
    title = "Held-out examples (95% interval)"
    return Table(title, ["metric", *models, "examples"], rows)


def _with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    if value is None or interval is None:
        return "- (the reference)"
    low, high = interval
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def _remarks(report: Mapping[str, Any]) -> list[str]:
    """Sentences on the reference, on examples left out and on the worst family."""
    remarks = []
    if "held_out" in report:
        remarks += [_reference_line(report["held_out"]), _left_out_line(report["held_out"])]
    if _has_cases(report):
        remarks.append(_worst_line(report))
    return [remark for remark in remarks if remark]


def _reference_line(held_out: Mapping[str, Any]) -> str:
    if "pairs_in_order" not in held_out:
        return "The held-out examples have no pairs, so no rewards are compared."
    reference = held_out["reference"]
    if reference is None:
        return (
            "There is no reference model: pairs_in_order and reward_margin compare plain "
            "log-probabilities. To compare rewards, set `reference` to the model that training "
            "started from."
        )
    name = f"{reference['model']} ({reference['folder']})" if reference["model"] else None
    return (
        f"pairs_in_order and reward_margin are measured against {name or reference['folder']}: "
        f"{reference['reason']}."
    )


def _left_out_line(held_out: Mapping[str, Any]) -> str:
    """How many held-out examples were measured, and why the others were not."""
    ledger = held_out["examples"].get("sft_loss") or held_out["examples"]["pairs_in_order"]
    reasons = {key: count for key, count in ledger.items() if key not in ("in", "out") and count}
    left_out = ", ".join(f"{key} {count}" for key, count in reasons.items())
    return f"Measured {ledger['out']} of {ledger['in']} held-out examples" + (
        f"; not measured: {left_out}." if left_out else "."
    )


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
        title += f"; hidden without reading the meta-prompt: at most {report['best_constant']:.3f}"
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
        return "No case measures following, flip or conflict."
    return (
        f"Worst family of {list(report['models'])[-1]}: {worst['family']}, {worst['metric']} "
        f"{worst['rate']:.3f} over {worst['count']}."
    )
