"""Prints the end of a pipeline: two answers side by side, the rates, and the next commands."""

import random
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from metaalign.config import ServeConfig
from metaalign.data.recipes.cases import Case, score
from metaalign.errors import DataError
from metaalign.evaluate.inputs import read_cases
from metaalign.serve.app import run_serve, stop_serve
from metaalign.upstream import ask

MEANINGS = {
    "following": "obeys what it is told, and is still right",
    "flip": "obeys both of two opposites",
    "conflict": "obeys the system against the user",
    "hidden": "obeys what it is not told (lower is better)",
    "swapped": "obeys although told the opposite (lower is better)",
    "unseen": "obeys wordings, parameters and families that training never used",
}


def console() -> Console:
    """A console as wide as the terminal, or of 100 columns if the output is not a terminal."""
    plain = Console()
    return plain if plain.is_terminal else Console(width=100)


def draw_pair(store: Path, seed: int) -> tuple[Case, Case]:
    """Two held-out cases: one query under two opposite meta-prompts, sampled by the seed.

    Raises:
        DataError: the store has no such cases.
    """
    pairs: dict[str, list[Case]] = defaultdict(list)
    for case in read_cases(store):
        if case.metric == "flip":
            pairs[case.pair].append(case)
    whole = sorted(pair for pair, cases in pairs.items() if len(cases) == 2)
    if not whole:
        raise DataError(f"{store}: no held-out case has an opposite; prepare with more cases")
    first, second = pairs[random.Random(seed).choice(whole)]
    return first, second


def show_answers(config: ServeConfig, *, store: Path, seed: int) -> None:
    """Serve the model, ask one held-out query under two meta-prompts, and stop serving."""
    cases = draw_pair(store, seed)
    url = run_serve(config, block=False)
    try:
        answers = [
            ask(
                case.query,
                base_url=url,
                model=config.name,
                system_info=case.system_info,
                user_info=case.user_info,
            )
            for case in cases
        ]
    finally:
        stop_serve()
    console().print(side_by_side(cases, answers))


def side_by_side(cases: tuple[Case, Case], answers: list[str]) -> Table:
    """A table of one query, two meta-prompts and two answers."""
    table = Table(title=Text(cases[0].query, style="bold"), show_lines=True, expand=True)
    for case in cases:
        tiers = [("System Info", case.system_info), ("User Info", case.user_info)]
        header = Text("\n".join(f"{tier}: {text}" for tier, text in tiers if text))
        table.add_column(header, ratio=1, overflow="fold")
    verdicts = [
        "obeyed, and right" if score(case, answer) else "not obeyed, or not right"
        for case, answer in zip(cases, answers, strict=True)
    ]
    shown = zip(answers, verdicts, strict=True)
    table.add_row(
        *(Group(Text(answer), Text(f"({verdict})", style="dim")) for answer, verdict in shown)
    )
    return table


def rates(report: Mapping[str, Any]) -> Table:
    """A table of every evaluated model's rates on the held-out cases."""
    metrics = [metric for metric in MEANINGS if metric in report]
    models = [name for name in report[metrics[0]] if name != "count"]
    table = Table()
    table.add_column("held-out cases")
    for name in [*models, "count"]:
        table.add_column(name, justify="right")
    for metric in metrics:
        values = [f"{report[metric][name]:.3f}" for name in models]
        table.add_row(f"{metric}: {MEANINGS[metric]}", *values, str(report[metric]["count"]))
    return table


def next_steps(storage: str) -> str:
    """The commands that a user may want to run next."""
    return (
        f"next:  make serve STORAGE={storage}   the model behind POST /v1/chat/completions\n"
        f"       make ui STORAGE={storage}      every run, curve and plot in MLflow"
    )
