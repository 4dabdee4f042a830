"""Every setting. One frozen model a job, each in a file of its own; `load_config` reads them.

Knows nothing of what the settings do.
"""

import argparse
import os
import re
import sys
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from metaalign.config.dpo import DPOConfig
from metaalign.config.evaluate import EvaluateConfig
from metaalign.config.export import ExportConfig
from metaalign.config.pipeline import STAGES, PipelineConfig
from metaalign.config.prepare import PrepareConfig
from metaalign.config.serve import ServeConfig
from metaalign.config.sft import SFTConfig
from metaalign.errors import ConfigError, did_you_mean

__all__ = [
    "STAGES",
    "DPOConfig",
    "EvaluateConfig",
    "ExportConfig",
    "PipelineConfig",
    "PrepareConfig",
    "SFTConfig",
    "ServeConfig",
    "load_config",
    "parse_arguments",
    "resolve",
    "sections_of",
]

Config = TypeVar("Config", bound=BaseModel)

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


def resolve(storage: str, name: str) -> Path:
    """The path that `name` means: itself where it is absolute, else a folder of the storage."""
    return Path(name) if os.path.isabs(name) else Path(storage) / name


def load_config(model: type[Config], path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `section.key=value` overrides, and check every setting.

    Raises:
        ConfigError: the file cannot be read, or lists every setting that is wrong.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        settings = yaml.safe_load(text) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the config file cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: expected settings as `key: value`, got {settings!r}")
    for override in overrides:
        _apply(settings, override)
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(_explain(model, error, Path(path).name)) from None


def parse_arguments(model: type[Config], arguments: Sequence[str] | None = None) -> Config:
    """What a job's command line says; `--help` lists every setting of the job.

    Prints the problem and exits with 2 where the config is wrong.
    """
    parser = argparse.ArgumentParser(
        description=f"{model.__doc__}\n\nSettings:\n" + "\n".join(_describe(model)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG.yaml", help="the job's settings")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="settings that win over the file"
    )
    given = parser.parse_args(arguments)
    try:
        return load_config(model, given.config, given.overrides)
    except ConfigError as error:
        print(f"ConfigError: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _apply(settings: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: expected section.key=value")
    *sections, last = key.split(".")
    place: Any = settings
    for section in sections:
        place = _enter(place, section, override)
    if isinstance(place, list):
        if not last.isdigit() or int(last) >= len(place):
            raise ConfigError(f"override {override!r}: {last!r} is no item of the list")
        place[int(last)] = _value(value)
    else:
        place[last] = _value(value)


def _value(text: str) -> Any:
    """What YAML makes of the text; prose stays prose: "Answer so: briefly", "*.json"."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return text if isinstance(value, dict) and not text.lstrip().startswith("{") else value


def _enter(settings: Any, section: str, override: str) -> Any:
    if isinstance(settings, list) and section.isdigit() and int(section) < len(settings):
        return settings[int(section)]
    if isinstance(settings, dict):
        if settings.get(section) is None:
            settings[section] = {}
        if isinstance(settings[section], dict | list):
            return settings[section]
    raise ConfigError(f"override {override!r}: {section!r} is not a section")


def _explain(model: type[BaseModel], error: ValidationError, file: str) -> str:
    problems = error.errors()
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    return "\n  ".join([f"{file}: {count}", *(_problem(model, problem) for problem in problems)])


def _problem(model: type[BaseModel], problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        if location[-1] in _NOT_YET:
            return f"{key}: metaalign has no {_NOT_YET[location[-1]]}"
        hint = did_you_mean(key, list(_keys(model)))
        return f"{key}: unknown setting, got {problem['input']!r}{hint}"
    if problem["type"] == "missing":
        return f"{key}: missing; give it in the file or as {key}=VALUE"
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
    got = "" if isinstance(problem["input"], dict) else f", got {problem['input']!r}"
    return f"{key}: {message}{_KEY_IN_URI.sub('://...@', got)}" if key else message


def _sections(annotation: Any) -> Iterable[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType):
        for part in typing.get_args(annotation):
            yield from _sections(part)


def _keys(model: type[BaseModel], prefix: str = "") -> Iterable[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        for section in _sections(field.annotation):
            yield from _keys(section, f"{prefix}{name}.")


def sections_of(annotation: Any) -> tuple[str, list[type[BaseModel]]]:
    """What stands in a key between a setting and those inside it, and the sections that it holds.

    A section holds itself, a list `0.` of them, a mapping `NAME.` of them.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    between, types = "", (annotation,)
    if origin is tuple:
        between, types = "0.", arguments[:1]
    if origin is dict:
        between, types = "NAME.", arguments[1:]
    return between, [section for each in types for section in _sections(each)]


def _describe(model: type[BaseModel], prefix: str = "") -> Iterable[str]:
    for name, field in model.model_fields.items():
        between, sections = sections_of(field.annotation)
        described = field.description is not None and _default(field) is None
        if between or not sections or described:
            default = "required" if field.is_required() else repr(_default(field))
            summary = " ".join((field.description or "").split())
            yield f"  {prefix}{name} ({default})\n      {summary}".replace("%", "%%")
        for section in sections:
            yield from _describe(section, f"{prefix}{name}.{between}")


def _default(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=field.default_factory is not None)
