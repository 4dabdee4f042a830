"""Every file shape that users bring -> Example. A bad row is kept with its reason, never dropped.

Knows no tokenizer and no Ray. One row of each shape:

    metaalign  {"system_info": "Be brief.", "user_info": "I am Ana.",
                "turns": [{"role": "user", "text": "Capital of Peru?"}],
                "responses": [{"text": "Lima.", "scores": {"preference": 1}},
                              {"text": "It is Lima.", "scores": {"preference": 0}}],
                "tags": {"split": "train"}}
    hh_rlhf    {"chosen": "\\n\\nHuman: Hi\\n\\nAssistant: Hello!", "rejected": "..."}
    alpaca     {"instruction": "Translate.", "input": "hola", "output": "hello"}
    sharegpt   {"conversations": [{"from": "human", "value": "Hi"}],
                "chosen": {"from": "gpt", "value": "Hello!"}, "rejected": {...}}
    personas   {"statement": "Taxes are good.", "answer_matching_behavior": " Yes", ...}
"""

import difflib
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from metaalign.data.files import FileRead, Reading, conversation_key, read_records
from metaalign.data.personas import read_personas
from metaalign.errors import DataError, RowError
from metaalign.examples import HELD_OUT, PREFERENCE, TRAIN, Example, Response, Source, Turn

SHAPES: dict[str, frozenset[str]] = {
    "metaalign": frozenset({"turns", "responses"}),
    "sharegpt": frozenset({"conversations"}),
    "hh_rlhf": frozenset({"chosen", "rejected"}),
    "alpaca": frozenset({"instruction", "output"}),
    "personas": frozenset({"statement", "answer_matching_behavior"}),
}
"""The keys that tell a shape, the more telling shapes first."""

_ROWS_LOOKED_AT = 100
_TRANSCRIPT = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_METAALIGN_KEYS = frozenset(Example.__dataclass_fields__)


def detect_format(file: Path) -> str:
    """The format whose keys the first telling row of a file has.

    Raises:
        DataError: none does; names the keys found and the nearest known shape.
    """
    seen: list[Mapping[str, Any]] = []
    for record in read_records(file):
        if isinstance(record.value, Mapping):
            seen.append(record.value)
            found = _shape_of(record.value)
            if found:
                return found
        if record.row >= _ROWS_LOOKED_AT:
            break
    if not seen:
        raise DataError(
            f"{file}: none of its first rows is a JSON object; expected JSON lines or one JSON "
            f"array, plain or gzip, in one of the formats {', '.join(SHAPES)}"
        )
    raise DataError(
        f"{file}: unknown format: its rows have the keys {_list(seen[0])}; {_nearest(seen[0])}. "
        "Rename the keys, or write rows of the format metaalign"
    )


def read_file(file: Path, format: str, reading: Reading) -> FileRead:
    """Every row of a file as examples or as bad rows.

    Args:
        format: A key of SHAPES; `detect_format` finds it.

    Raises:
        DataError: the file itself cannot be read.
    """
    if format == "personas":
        return read_personas(file, reading)
    read, result = _READERS[format], FileRead(file)
    for record in read_records(file):
        result.rows += 1
        try:
            example = read(record.object(), Source(str(file), record.row))
            result.examples.append(_complete(example, reading))
        except RowError as error:
            result.refuse(record, str(error))
    return result


def _complete(example: Example, reading: Reading) -> Example:
    """A valid example with the source's defaults, a conversation and a split."""
    example.validate()
    conversation = example.conversation or conversation_key(example.turns[0].text)
    split = example.tags.get("split") or reading.split(conversation)
    if split not in (TRAIN, HELD_OUT):
        raise RowError(f"tags.split must be {TRAIN!r} or {HELD_OUT!r}, got {split!r}")
    return replace(
        example,
        system_info=example.system_info or reading.system_info,
        user_info=example.user_info or reading.user_info or "",
        conversation=conversation,
        tags={**example.tags, "split": split},
    )


def _read_metaalign(row: Mapping[str, Any], source: Source) -> Example:
    unknown = set(row) - _METAALIGN_KEYS
    if unknown:
        raise RowError(f"unknown keys {_list(unknown)}; the format metaalign has none of them")
    return Example(
        turns=tuple(_metaalign_turn(turn) for turn in _items(row, "turns")),
        responses=tuple(_metaalign_response(each) for each in _items(row, "responses")),
        source=source,
        system_info=_text(row, "system_info", ""),
        user_info=_text(row, "user_info", ""),
        weight=_number(row, "weight", 1.0),
        margin=_number(row, "margin", 0.0),
        order_by=_text(row, "order_by", PREFERENCE),
        tags={
            name: _text({f"tags.{name}": tag}, f"tags.{name}")
            for name, tag in _mapping(row, "tags", name="key").items()
        },
        conversation=_text(row, "conversation", ""),
    )


def _metaalign_turn(turn: Mapping[str, Any]) -> Turn:
    role = turn.get("role")
    if role not in ("user", "assistant"):
        raise RowError(f"turns: role must be 'user' or 'assistant', got {role!r}")
    return Turn(role, _text(turn, "text"), _text(turn, "user_info", ""))


def _metaalign_response(response: Mapping[str, Any]) -> Response:
    desirable = response.get("desirable")
    if desirable is not None and not isinstance(desirable, bool):
        raise RowError(f"responses: desirable must be true, false or null, got {desirable!r}")
    scores = _mapping(response, "scores", name="objective")
    return Response(
        text=_text(response, "text"),
        scores={
            name: None if score is None else _number({name: score}, name)
            for name, score in scores.items()
        },
        desirable=desirable,
    )


def _read_hh_rlhf(row: Mapping[str, Any], source: Source) -> Example:
    chosen, rejected = (_transcript(row, key) for key in ("chosen", "rejected"))
    if chosen[:-1] != rejected[:-1]:
        raise RowError("chosen and rejected differ before their last turn")
    return _pair(chosen[:-1], chosen[-1].text, rejected[-1].text, source)


def _transcript(row: Mapping[str, Any], key: str) -> list[Turn]:
    start, *parts = _TRANSCRIPT.split(_text(row, key))
    if start.strip() or not parts:
        raise RowError(f"{key}: a transcript must begin with '\\n\\nHuman:', got {start[:40]!r}")
    turns = [
        Turn("user" if speaker == "Human" else "assistant", text.strip())
        for speaker, text in zip(parts[::2], parts[1::2], strict=True)
    ]
    if turns[-1].role != "assistant":
        raise RowError(f"{key}: the last turn is not the assistant's")
    return turns


def _read_alpaca(row: Mapping[str, Any], source: Source) -> Example:
    question, more = _text(row, "instruction"), _text(row, "input", "")
    turns = []
    for exchange in _items(row, "history", of=list, default=()):
        if len(exchange) != 2:
            raise RowError(f"history: expected [query, answer], got {exchange!r}")
        pair = {"query": exchange[0], "answer": exchange[1]}
        turns += [Turn("user", _text(pair, "query")), Turn("assistant", _text(pair, "answer"))]
    return Example(
        turns=(*turns, Turn("user", f"{question}\n\n{more}" if more.strip() else question)),
        responses=(Response(_text(row, "output")),),
        source=source,
        system_info=_text(row, "system", ""),
    )


def _read_sharegpt(row: Mapping[str, Any], source: Source) -> Example:
    messages = [_message(message) for message in _items(row, "conversations")]
    system = _text(row, "system", "")
    if messages and messages[0][0] == "system":
        system = messages.pop(0)[1]
    if any(role == "system" for role, _ in messages):
        raise RowError("conversations: a system message may only stand first")
    turns = [Turn(role, text) for role, text in messages]  # pyright: ignore[reportArgumentType]
    if "chosen" in row or "rejected" in row:
        chosen, rejected = (_answer(row, key) for key in ("chosen", "rejected"))
        return replace(_pair(turns, chosen, rejected, source), system_info=system)
    if not turns or turns[-1].role != "assistant":
        raise RowError("conversations: the last message is not the assistant's; nothing to train")
    responses = (Response(turns[-1].text),)
    return Example(tuple(turns[:-1]), responses, source, system_info=system)


def _message(message: Mapping[str, Any]) -> tuple[str, str]:
    speaker = _text(message, "from")
    if speaker == "system":
        return speaker, _text(message, "value")
    if speaker not in _ROLES:
        raise RowError(f"from: expected one of {_list(_ROLES)} or system, got {speaker!r}")
    return _ROLES[speaker], _text(message, "value")


def _answer(row: Mapping[str, Any], key: str) -> str:
    message = row.get(key)
    if not isinstance(message, Mapping):
        raise RowError(f"{key}: expected a message, got {_short(message)}")
    role, text = _message(message)
    if role != "assistant":
        raise RowError(f"{key}: expected the assistant's message, got one from {message['from']!r}")
    return text


_READERS: dict[str, Callable[[Mapping[str, Any], Source], Example]] = {
    "metaalign": _read_metaalign,
    "hh_rlhf": _read_hh_rlhf,
    "alpaca": _read_alpaca,
    "sharegpt": _read_sharegpt,
}


def _pair(turns: Sequence[Turn], chosen: str, rejected: str, source: Source) -> Example:
    responses = (Response(chosen, {PREFERENCE: 1.0}), Response(rejected, {PREFERENCE: 0.0}))
    return Example(tuple(turns), responses, source)


def _text(row: Mapping[str, Any], key: str, default: str | None = None) -> str:
    value = row.get(key)
    if value is None and default is not None:
        return default
    if value is None:
        raise RowError(f"{key} is missing")
    if not isinstance(value, str):
        raise RowError(f"{key}: expected text, got {_short(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError(f"{key}: text is not valid UTF-8") from error
    return value


def _number(row: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = row.get(key, default)
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not abs(number) <= sys.float_info.max:  # not a number fails this too
        raise RowError(f"{key}: expected a finite number, got {_short(value)}")
    return float(number)


def _items(
    row: Mapping[str, Any], key: str, *, of: type = Mapping, default: Sequence[Any] | None = None
) -> Sequence[Any]:
    values = default if row.get(key) is None else row[key]
    if not isinstance(values, list | tuple) or not all(isinstance(each, of) for each in values):
        expected = "a list of lists" if of is list else "a list of objects"
        raise RowError(f"{key}: expected {expected}, got {_short(values)}")
    return values


def _mapping(row: Mapping[str, Any], key: str, *, name: str) -> Mapping[str, Any]:
    """An object, or the list of {name, value} that `Example.to_row` writes for one."""
    value = row.get(key)
    if value is None:
        return {}
    if isinstance(value, list) and all(
        isinstance(each, Mapping) and set(each) == {name, "value"} for each in value
    ):
        value = {_text(each, name): each["value"] for each in value}
    if not isinstance(value, Mapping):
        raise RowError(f"{key}: expected an object, got {_short(value)}")
    return {_text({key: each}, key): inner for each, inner in value.items()}


def _shape_of(row: Mapping[str, Any]) -> str | None:
    return next((name for name, keys in SHAPES.items() if keys <= set(row)), None)


def _nearest(keys: Iterable[str]) -> str:
    near = {
        name: sum(bool(difflib.get_close_matches(key, keys, n=1)) for key in needed) / len(needed)
        for name, needed in SHAPES.items()
    }
    nearest = max(near, key=lambda name: near[name])
    if near[nearest] > 0:
        return f"the nearest known format, {nearest}, needs {_list(SHAPES[nearest])}"
    return "known are " + "; ".join(f"{name}: {_list(keys)}" for name, keys in SHAPES.items())


def _list(keys: Iterable[str]) -> str:
    return ", ".join(sorted(keys))


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
