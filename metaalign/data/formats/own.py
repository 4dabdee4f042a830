"""Reads metaalign's own format: an `Example` as JSON.

{"system_info": "Be brief.", "user_info": "I am Ana.",
 "turns": [{"role": "user", "text": "Capital of Peru?"}],
 "responses": [{"text": "Lima.", "scores": {"preference": 1}},
               {"text": "It is Lima.", "scores": {"preference": 0}}],
 "tags": {"split": "train"}}
"""

from collections.abc import Mapping
from typing import Any

from metaalign.data.formats.fields import as_number, as_text, flag, items, mapping, number, text
from metaalign.data.sources.options import SourceOptions
from metaalign.errors import RowError
from metaalign.examples import PREFERENCE, Example, Response, Source, Turn

OWN_KEYS = frozenset(Example.__dataclass_fields__)


def read_metaalign(row: Mapping[str, Any], source: Source, options: SourceOptions) -> list[Example]:
    """The example of a row with the fields of `Example`.

    Scores and tags may be lists, the form of Arrow tables:
    [{"objective": "preference", "value": 1}] and [{"key": "split", "value": "train"}].
    """
    unknown = {key for key, value in row.items() if value is not None} - OWN_KEYS
    if unknown:
        names = ", ".join(sorted(unknown))
        raise RowError(f"unknown keys {names}; the format metaalign has none of them")
    example = Example(
        turns=tuple(_turn(turn) for turn in items(row, "turns")),
        responses=tuple(_response(each) for each in items(row, "responses")),
        source=source,
        system_info=text(row, "system_info", ""),
        user_info=text(row, "user_info", ""),
        weight=number(row, "weight", 1.0),
        margin=number(row, "margin", 0.0),
        order_by=text(row, "order_by", PREFERENCE),
        tags={
            name: as_text(tag, f"tags.{name}")
            for name, tag in mapping(row, "tags", name="key").items()
            if tag is not None
        },
        conversation=text(row, "conversation", ""),
    )
    return [example]


def _turn(turn: Mapping[str, Any]) -> Turn:
    role = turn.get("role")
    if role not in ("user", "assistant"):
        raise RowError(f"turns: role must be 'user' or 'assistant', got {role!r}")
    return Turn(role, text(turn, "text"), text(turn, "user_info", ""))


def _response(response: Mapping[str, Any]) -> Response:
    scores = mapping(response, "scores", name="objective")
    return Response(
        text=text(response, "text"),
        scores={
            name: None if score is None else as_number(score, name)
            for name, score in scores.items()
        },
        desirable=flag(response, "desirable"),
    )
