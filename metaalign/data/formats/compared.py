"""Reads two answers to one prompt, compared by objective. One row of each format:

    compared   {"prompt": "Hi", "response_0": "Hello!", "response_1": "Go.",
                "labels": {"helpfulness": ">", "humor": "=", "length": "<"}}, or of PKU-SafeRLHF
               {"prompt": "Hi", "response_0": "Hello!", "response_1": "Go.",
                "better_response_id": 0, "safer_response_id": 1}
    shp        {"history": "How do I ...?", "human_ref_A": "So.", "human_ref_B": "No.", "labels": 1}
    openai     {"input": {"messages": [{"role": "user", "content": "Hi"}]},
                "preferred_output": [{"role": "assistant", "content": "Hello!"}],
                "non_preferred_output": [{"role": "assistant", "content": "Go."}]}

`labels` has MetaAligner's signs: `>` if the first answer is better at an objective,
https://arxiv.org/abs/2403.17141. In SHP it is 1 if the first answer is better. The better
response of PKU-SafeRLHF is the more helpful one, and its safer response the less harmful one,
https://arxiv.org/abs/2310.12773.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from metaalign.data.formats.fields import is_filled, items, mapping, short, text
from metaalign.data.formats.prompts import read_prompt
from metaalign.data.formats.sides import read_pair
from metaalign.data.sources.options import SourceOptions
from metaalign.errors import RowError
from metaalign.examples import PREFERENCE, Example, Response, Source, Turn

COMPARED, SHP = ("response_0", "response_1"), ("human_ref_A", "human_ref_B")
"""Keys of the two answers."""

OPENAI = ("input", "preferred_output", "non_preferred_output")

_SCORES = {">": (1.0, 0.0), "<": (0.0, 1.0), "=": (0.5, 0.5)}
_WINNERS = {0: ">", 1: "<"}
_CORRECTOR = ("warm_up", "equal", "contrastive")
"""Recipes that read all objectives and need no order."""

WINNER_KEYS = {"better_response_id": "helpfulness", "safer_response_id": "harmlessness"}
"""Keys of the index of the better answer, and the objective at which it is better."""


def read_compared(row: Mapping[str, Any], source: Source, options: SourceOptions) -> list[Example]:
    """A pair with scores by objective. Several need `order_by` or the recipe of a corrector."""
    prompt = read_prompt(row)
    if prompt is None:
        raise RowError("the prompt is missing")
    signs = dict(mapping(row, "labels", name="objective"))
    for key, objective in WINNER_KEYS.items():
        if row.get(key) is not None:
            signs.setdefault(objective, _sign(row[key], key))
    if not signs:
        raise RowError("labels: nobody compared the answers")
    responses = _responses(row, COMPARED, signs)
    order_by = options.order_by or next(iter(signs))
    needs_none = options.recipe in _CORRECTOR or options.judgement is not None
    if len(signs) > 1 and options.order_by is None and not needs_none:
        raise RowError(f"several objectives; give order_by one of {list(signs)}")
    return [
        Example(
            tuple(prompt.turns),
            responses,
            source,
            system_info=prompt.system_info,
            order_by=order_by,
        )
    ]


def read_shp(row: Mapping[str, Any], source: Source, options: SourceOptions) -> list[Example]:
    """A pair of comments, one of which readers preferred."""
    first = row.get("labels")
    if first not in (0, 1) or isinstance(first, bool):
        raise RowError(f"labels: expected 1 for the first answer or 0, got {short(first)}")
    signs = {PREFERENCE: ">" if first else "<"}
    turns = (Turn("user", text(row, "history")),)
    return [Example(turns, _responses(row, SHP, signs), source)]


def _responses(
    row: Mapping[str, Any], keys: Sequence[str], signs: Mapping[str, Any]
) -> tuple[Response, ...]:
    for objective, sign in signs.items():
        if not isinstance(sign, str) or sign not in _SCORES:
            raise RowError(f"labels.{objective}: expected '>', '<' or '=', got {short(sign)}")
    return tuple(
        Response(text(row, key), {name: _SCORES[sign][place] for name, sign in signs.items()})
        for place, key in enumerate(keys)
    )


def _sign(winner: Any, key: str) -> str:
    if isinstance(winner, bool) or not isinstance(winner, int | float) or winner not in _WINNERS:
        raise RowError(f"{key}: expected 0 or 1, got {short(winner)}")
    return _WINNERS[int(winner)]


def read_openai(row: Mapping[str, Any], source: Source, options: SourceOptions) -> list[Example]:
    """A pair in the format of OpenAI's preference fine-tuning."""
    request = mapping(row, "input", name="key")
    tools = [key for key in ("tools", "tool_choice") if is_filled(request.get(key))]
    if tools:
        raise RowError(f"input.{tools[0]}: only text can be trained on")
    before = items({"input.messages": request.get("messages")}, "input.messages")
    sides = {
        side: [*before, *items(row, key)]
        for side, key in zip(("chosen", "rejected"), OPENAI[1:], strict=True)
    }
    return read_pair(sides, source, options)
