"""What is wrong with settings, in words: one line a problem, named as a user would set it."""

import re
import types
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from metaalign.config.written import choices_of, sections_in, type_inside
from metaalign.errors import did_you_mean

_NOT_YET = {
    "load_in_4bit": "quantized weights (QLoRA); leave it out, and set model.lora for less memory",
    "load_in_8bit": "quantized weights (QLoRA); leave it out, and set model.lora for less memory",
    "quantization": "quantized weights (QLoRA); leave it out, and set model.lora for less memory",
    "tensor_parallel_size": "tensor parallelism; leave it out: ZeRO stage 3 cuts the weights",
    "sequence_parallel_size": "sequence parallelism; leave it out, and lower batch.budget or "
    "set model.activation_checkpointing",
    "context_parallel_size": "sequence parallelism; leave it out, and lower batch.budget or "
    "set model.activation_checkpointing",
}
"""Settings that users know from elsewhere, and what they would ask for."""

_KEY_IN_URI = re.compile(r"://[^:/]*:\S*@")
"""A key and its secret, which no message may repeat."""

_PREFIX = re.compile(r"^(Value error, |(Input|String|Tuple|List|Dictionary) (?=should))")
"""How pydantic begins a message; the setting's name stands there instead."""

_OTHER_TYPE = re.compile(r".*_(type|parsing)$|literal_error|int_from_float")
"""pydantic's names of errors that say of what type a value should have been."""


class _Problem(NamedTuple):
    key: str
    """As a user would write it."""
    union: str
    """The setting whose types were tried in turn, where it takes one of several; else empty."""
    other_type: bool
    """Whether one of those types does not fit at all."""
    raw: Any
    """As pydantic told it."""


def explain(model: type[BaseModel], error: ValidationError, file: str) -> str:
    """Every problem of a job's settings, below the file's name and their number."""
    lines = [*_lines(model, [_located(model, raw) for raw in error.errors()])]
    count = f"{len(lines)} problem{'s' if len(lines) > 1 else ''}"
    return "\n  ".join([f"{file}: {count}", *lines])


def _lines(model: type[BaseModel], problems: Sequence[_Problem]) -> Iterator[str]:
    groups: dict[str, list[_Problem]] = {}
    for number, problem in enumerate(problems):
        groups.setdefault(problem.union or str(number), []).append(problem)
    for group in groups.values():
        # Where one type of a union fits, what is wrong inside it is the problem.
        fits = [problem for problem in group if not problem.other_type]
        if fits or len(group) == 1:
            yield from (_line(model, problem) for problem in fits or group)
        else:
            said = ", or ".join(_message(problem) for problem in group)
            yield f"{group[0].union}: {said.replace(', or should', ', or')}{_got(group[0])}"


def _located(model: type[BaseModel], raw: Any) -> _Problem:
    annotation: Any = model
    parts: list[str] = []
    union, in_branch = "", False
    for part in raw["loc"]:
        choices = [each for each in choices_of(annotation) if each is not types.NoneType]
        if len(choices) > 1 and not in_branch:  # pydantic's name of one of a union's types
            union, in_branch = union or ".".join(parts), True
            continue
        parts.append(str(part))
        annotation, in_branch = type_inside(choices, part), False
    other_type = bool(in_branch and _OTHER_TYPE.match(raw["type"]))
    return _Problem(".".join(parts), union, other_type, raw)


def _line(model: type[BaseModel], problem: _Problem) -> str:
    key, raw = problem.key, problem.raw
    if raw["type"] == "extra_forbidden":
        name = str(raw["loc"][-1])
        if name in _NOT_YET:
            return f"{key}: metaalign has no {_NOT_YET[name]}"
        hint = did_you_mean(key, [*_keys(model, raw["loc"][:-1])])
        return f"{key}: unknown setting, got {raw['input']!r}{hint}"
    if raw["type"] == "missing":
        return f"{key}: missing; give it in the file or as {key}=VALUE"
    return f"{key}: {_message(problem)}{_got(problem)}" if key else _message(problem)


def _message(problem: _Problem) -> str:
    return _PREFIX.sub("", problem.raw["msg"]).replace("valid tuple", "list")


def _got(problem: _Problem) -> str:
    given = problem.raw["input"]
    return "" if isinstance(given, dict) else _KEY_IN_URI.sub("://...@", f", got {given!r}")


def _keys(annotation: Any, path: Sequence[str | int], prefix: str = "") -> Iterator[str]:
    """Every setting of a section and of the sections in it; of lists and mappings, those of the
    item on the way to `path`."""
    for section in sections_in(annotation):
        for name, field in section.model_fields.items():
            yield prefix + name
            within, key = field.annotation, f"{prefix}{name}."
            yield from _keys(within, path[1:], key)
            if path[:1] == (name,) and len(path) > 1:
                item = type_inside([*choices_of(within)], path[1])
                yield from _keys(item, path[2:], f"{key}{path[1]}.")
