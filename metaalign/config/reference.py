"""The page of all settings, written from the config classes.

    python -m metaalign.config.reference > docs/settings.md

Knows nothing of what the settings do; tests/test_docs.py holds the page to the classes.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from metaalign.config import (
    DPOConfig,
    EvaluateConfig,
    ExportConfig,
    PipelineConfig,
    PrepareConfig,
    ServeConfig,
    SFTConfig,
    sections_of,
)

_JOBS: dict[str, type[BaseModel]] = {
    "prepare": PrepareConfig,
    "sft": SFTConfig,
    "dpo": DPOConfig,
    "export": ExportConfig,
    "evaluate": EvaluateConfig,
    "serve": ServeConfig,
    "pipeline": PipelineConfig,
}

_HEAD = """\
# Settings

Written by `python -m metaalign.config.reference > docs/settings.md`; do not edit it by hand.

A job reads one YAML file, and `section.key=value` on its command line wins over the file:

```sh
python -m ray_jobs.sft ray_jobs/configs/sft.yaml storage=/mnt/runs/1 optimizer.learning_rate=1e-5
```

A default stands for what the file leaves out; the files in `ray_jobs/configs` say more. None is
written `null`. An item of a list is named by its place from 0, as in `sources.0.path`, an item of a
mapping by its name, as in `teachers.strong.model`. `python -m ray_jobs.JOB --help` lists the same
settings. Every setting is checked before a job starts, and every problem is reported at once."""

_TYPES = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "object": "mapping",
    "array": "list",
    "null": "None",
}
_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}


def page() -> str:
    """The page, in Markdown: a part for each job, a table for each section."""
    parts, printed = [_HEAD], {model: job for job, model in _JOBS.items()}
    for job, model in _JOBS.items():
        parts += [f"## {job}", *_tables(job, model, printed)]
    return "\n\n".join(parts) + "\n"


def _tables(
    job: str, model: type[BaseModel], printed: dict[type[BaseModel], str], prefix: str = ""
) -> Iterator[str]:
    """The table of a section, then those of the sections in it that were not printed before."""
    schema = model.model_json_schema()["properties"]
    lines = ["| setting | takes | default | what it does |", "|---|---|---|---|"]
    inside: list[tuple[str, type[BaseModel]]] = []
    for name, field in model.model_fields.items():
        between, sections = sections_of(field.annotation)
        links = []
        for section in sections:
            key = f"{prefix}{name}.{between}"
            if section not in printed:
                printed[section] = f"{job}: {key.rstrip('.')}"
                inside.append((key, section))
            links.append(f"[{printed[section]}](#{_anchor(printed[section])})")
        cells = (
            f"`{prefix}{name}`",
            _sections_words(between, links, schema[name]) if links else _words(schema[name]),
            "required" if field.is_required() else _default(field),
            _line(field.description) or " ".join(map(_about, sections)),
        )
        lines.append(f"| {' | '.join(map(_cell, cells))} |")
    yield "\n".join(lines)
    for key, section in inside:
        yield f"### {printed[section]}"
        yield from _tables(job, section, printed, key)


def _sections_words(between: str, links: Iterable[str], schema: Mapping[str, Any]) -> str:
    """Which section a setting holds: one, a list or a mapping of them."""
    many = {"": "", "0.": "list of ", "NAME.": "mapping of names to "}[between]
    kinds = {each.get("type") for each in schema.get("anyOf", ())}
    return many + " or ".join([*links, *(["None"] if "null" in kinds else [])])


def _words(schema: Mapping[str, Any]) -> str:
    """What a value may be, in words."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_words(each) for each in schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{each}`" for each in schema.get("enum", [schema.get("const")]))
    if "prefixItems" in schema:
        return f"[{', '.join(_words(each) for each in schema['prefixItems'])}]"
    words = _TYPES[schema["type"]]
    for holds, of in (("items", "of"), ("additionalProperties", "to")):
        if isinstance(schema.get(holds), dict):
            words += f" {of} {_words(schema[holds])}"
    bounds = [f"{said} {schema[key]:g}" for key, said in _BOUNDS.items() if key in schema]
    return f"{words} ({', '.join(bounds)})" if bounds else words


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return ""
    if value == "":
        return "empty"
    return f"`{value if value is None or isinstance(value, str) else json.dumps(value)}`"


def _line(text: str | None) -> str:
    return " ".join((text or "").split())


def _about(section: type[BaseModel]) -> str:
    return "The stage of this name." if section in _JOBS.values() else _line(section.__doc__)


def _cell(text: str) -> str:
    """Text that a table's cell can hold: what is code stands as it is, but for the bar."""
    parts = text.replace("|", "/").split("`")
    return "`".join(part.replace("*", r"\*") if not n % 2 else part for n, part in enumerate(parts))


def _anchor(heading: str) -> str:
    """The anchor that a Markdown page gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


if __name__ == "__main__":
    print(page(), end="")
