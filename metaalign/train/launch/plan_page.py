"""The plan of a run as a page of text, printed before the first step: numbers, and two examples.

The examples are read back from the rows that the model gets, so a mistake in the data, the template
or the loss mask is visible. Does not import Ray. A pair is shown as:

    row 41 of /data/pairs.jsonl · 17 tokens, 9 of them targets
     user_query  <|user_query|>Capital of Peru?
       response  <|response|>
         chosen  ⟦Lima.</s>⟧
       rejected  ⟦I do not know.</s>⟧
"""

import io
from collections.abc import Iterator
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from metaalign.config import DPOConfig
from metaalign.steps.trees import Rows, build_rows, response_index
from metaalign.steps.unpacking import Unpacked, unpack
from metaalign.store.display import TIER_STYLES, tokens_as_text
from metaalign.template import Template
from metaalign.train.launch.plan_checks import why_nothing_is_held_out
from metaalign.train.launch.plan_numbers import PlanNumbers
from metaalign.train.task import Materials, Task

_OPEN, _CLOSE = "⟦", "⟧"
"""Brackets around the tokens that the loss trains."""

_WIDTH = 100
_SHOWN_EXAMPLES = 2
_SHOWN_SEGMENTS = 8
"""Largest number of segments shown of a prompt: the first and the last ones."""

_LEFT_OUT = {
    "no_best_response": "without a response that is not marked undesirable",
    "no_order": "without two responses of different scores",
    "no_label": "without a response marked desirable or undesirable",
    "no_mismatched_response": "without a response of another conversation that fits the context",
}
"""Why an example cannot be trained on, by the reason's name in `Selection.ledger`."""


def plan_page(task: Task, materials: Materials, numbers: PlanNumbers, optimizer: str) -> Group:
    """The whole page, as a renderable of rich."""
    parts: list[RenderableType] = [Rule(f"{task.job}: the plan", align="left", style="dim")]
    parts += [_table(_facts(task, materials, numbers, optimizer)), _legend()]
    for rows, position in _samples(materials, task.config.workers.max_workers):
        parts.append(_example(task, materials, rows, position))
    return Group(*parts, Rule(style="dim"))


def as_text(page: Group) -> str:
    """The page without colours, at a fixed width."""
    file = io.StringIO()
    Console(width=_WIDTH, file=file, color_system=None).print(page)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def print_page(page: Group) -> None:
    """Print to standard output: in colours on a terminal, otherwise as `as_text`."""
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(page)
    else:
        print(as_text(page), flush=True)


def _table(rows: dict[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="left", no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _facts(
    task: Task, materials: Materials, numbers: PlanNumbers, optimizer: str
) -> dict[str, str]:
    config = task.config
    laid_out, workers = numbers.steps_laid_out, config.workers.max_workers
    first = "all steps" if laid_out == numbers.steps else f"the first {_plural(laid_out, 'step')}"
    return {
        "examples": f"{numbers.examples:,} of {numbers.examples + sum(numbers.left_out.values()):,}"
        " in the training split",
        "left out": _left_out(numbers.left_out, task.context),
        "steps": f"{_plural(numbers.steps, 'optimizer step')}, "
        f"{numbers.steps_per_epoch:,} an epoch: {_reason_of_steps(task, numbers)}",
        "tokens": f"{numbers.tokens:,} in {numbers.visits:,} examples, each with its prompt once; "
        f"{numbers.targets / numbers.tokens:.1%} are targets, which the loss is taken on",
        "fill": f"{numbers.fill:.1%} of the rows' tokens, the rest is padding: in {first}, over "
        f"{_plural(workers, 'worker')}",
        "held out": _held_out(task, materials, numbers),
        "training": f"{optimizer}, {task.dtype}, layout {task.layout}, ZeRO stage "
        f"{config.zero.stage}, {'adapters' if config.model.lora else 'all weights'} of "
        f"{config.model.path or 'a new model'}",
    }


def _left_out(left_out: dict[str, int], context: int) -> str:
    """The reasons in words. All examples that are too long share one reason, with counts by the
    tier that holds most of their tokens."""
    long = {
        reason.removeprefix("too_long_"): count
        for reason, count in left_out.items()
        if reason.startswith("too_long_")
    }
    reasons = [
        f"{count:,} {_LEFT_OUT.get(reason, reason)}"
        for reason, count in left_out.items()
        if not reason.startswith("too_long_")
    ]
    if long:
        tiers = ", ".join(f"{tier} {count:,}" for tier, count in long.items())
        reasons.append(
            f"{sum(long.values()):,} longer than the model's context of {context:,} tokens "
            f"(by the tier that holds most of them: {tiers})"
        )
    return "; ".join(reasons) or "none"


def _reason_of_steps(task: Task, numbers: PlanNumbers) -> str:
    """The arithmetic that gives the number of steps."""
    length, batch = task.config.length, task.config.batch
    if length.max_steps == numbers.steps:
        return f"length.max_steps, each of at least {_plural(batch.global_batch_size, 'example')}"
    if batch.group_by == "example":
        product = f"length.epochs {length.epochs:g} x {numbers.examples:,} examples"
        return f"{product} / {batch.global_batch_size:,} a step, rounded up"
    return (
        f"length.epochs {length.epochs:g}, whole groups (batch.group_by {batch.group_by}) until "
        f"a step has {_plural(batch.global_batch_size, 'example')}"
    )


def _held_out(task: Task, materials: Materials, numbers: PlanNumbers) -> str:
    if not numbers.held_out:
        return f"nothing is measured: {why_nothing_is_held_out(task, materials.store)}"
    every = task.config.held_out.every_steps
    first = f"{_plural(numbers.held_out, 'example')}, measured before the first step"
    if every is None:
        return f"{first} and after the last"
    if every >= numbers.steps:
        return f"{first} and after the last; held_out.every_steps {every:,} adds none between"
    return f"{first}, every {_plural(every, 'step')} and after the last"


def _plural(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _legend() -> Text:
    text = Text("\nTwo examples of the first step, as the model gets them. ")
    text.append(f"{_OPEN}The loss is taken on this{_CLOSE}", style="underline")
    return text.append("; <|...|> are control tokens, which text cannot contain.\n")


def _samples(materials: Materials, world_size: int) -> Iterator[tuple[Rows, int]]:
    """Micro-batches of the first step, each with the position of an example to show.

    The examples are from two groups if the step has two.
    """
    store, plan, _ = materials
    step, group = plan.step(0), plan.selection.group
    others = np.flatnonzero(group[step] != group[step[0]])
    second = [step[others[0]]] if len(others) else step[1:_SHOWN_EXAMPLES]
    layouts = plan.layout(0, world_size)
    for wanted in dict.fromkeys([step[0], *second]):
        micro, rank = next(
            (micro, rank)
            for micro in layouts
            for rank, bins in enumerate(micro.bins_by_rank)
            if any(wanted in members for members in bins)
        )
        yield build_rows(store, plan.selection, micro, rank), int(wanted)


class _Shown(NamedTuple):
    """A response of the example that is shown."""

    order: float
    """Sort key, in ascending order."""
    name: str
    sequence: Unpacked


def _example(task: Task, materials: Materials, rows: Rows, position: int) -> Group:
    store, selection = materials.store, materials.plan.selection
    columns, template = store.columns, store.template
    example = selection.example[position]
    title = f"row {columns.source_row[example]} of {columns.source_file[example]}"
    title += f" · {_plural(int(selection.tokens[position]), 'token')}, "
    title += f"{selection.targets[position]:,} of them targets"
    if columns.weight[example] != 1:
        title += f" · weight {columns.weight[example]:g}"
    if columns.margin[example]:
        title += f" · margin {columns.margin[example]:g}"
    shown = sorted(_responses(task, materials, rows, position), key=lambda each: each.order)
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", no_wrap=True, min_width=11)
    table.add_column(overflow="fold")
    prompt = shown[0].sequence
    first_target = int(prompt.is_target.argmax())
    for tier, text in _segments(template, prompt.tokens[:first_target]):
        table.add_row(Text(tier, style=TIER_STYLES.get(tier, "dim")), text)
    for _, name, (tokens, is_target) in shown:
        text = _masked(template, tokens[first_target:], is_target[first_target:])
        table.add_row(Text(name, style="bold"), text)
    return Group(Text(title, style="dim"), table, Text())


def _responses(task: Task, materials: Materials, rows: Rows, position: int) -> Iterator[_Shown]:
    """The responses of one example, named by their role in the loss."""
    store, selection = materials.store, materials.plan.selection
    columns, used = store.columns, response_index(selection, rows)
    slots = np.flatnonzero(rows.position == position)
    slots = slots[rows.occurrence[slots] == rows.occurrence[slots[0]]]
    own = columns.response_start[selection.response_row[used[slots]]] + rows.response[slots]
    for slot, response in zip(slots.tolist(), own.tolist(), strict=True):
        sequence = unpack(rows, slot)
        score, desirable = float(columns.order_score[response]), int(columns.desirable[response])
        if not isinstance(task.config, DPOConfig):
            yield _Shown(0, "trained", sequence)
        elif selection.mismatched[used[slot]]:
            yield _Shown(2, "mismatched", sequence)
        elif task.config.loss.name == "kto":
            yield _Shown(-desirable, "desirable" if desirable else "undesirable", sequence)
        elif len(slots) == 2:
            chosen = score == columns.order_score[own].max()
            yield _Shown(-score, "chosen" if chosen else "rejected", sequence)
        else:
            yield _Shown(-score, f"score {score:g}", sequence)


def _segments(template: Template, tokens: np.ndarray) -> list[tuple[str, Text]]:
    """The segments of a prompt, each with its tier. A control token starts a segment; tokens before
    the first control token belong to the first segment."""
    tiers = {id: tier for tier, id in template.control_ids.items()}
    opens = np.flatnonzero(np.isin(tokens, list(tiers)))
    found = []
    for segment in np.split(tokens, opens[1:]):
        tier = next(tiers[id] for id in segment.tolist() if id in tiers)
        found.append((tier, tokens_as_text(template, segment, tier)))
    if len(found) <= _SHOWN_SEGMENTS:
        return found
    half = _SHOWN_SEGMENTS // 2
    between = ("", Text(f"[... {len(found) - 2 * half} more segments ...]", style="dim"))
    return [*found[:half], between, *found[-half:]]


def _masked(template: Template, tokens: np.ndarray, is_target: np.ndarray) -> Text:
    """A response. Every run of tokens that the loss trains is underlined and in brackets."""
    text, start = Text(), 0
    for trained, run in groupby(is_target.tolist()):
        end = start + len(list(run))
        style = "underline" if trained else ""
        part = tokens_as_text(template, tokens[start:end], "response", style=style)
        text.append_text(Text.assemble(_OPEN, part, _CLOSE) if trained else part)
        start = end
    return text
