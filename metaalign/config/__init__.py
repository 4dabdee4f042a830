"""Every setting. One frozen model a job, each in a file of its own; `load_config` reads them.

Knows nothing of what the settings do.
"""

import argparse
import os
import sys
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
from metaalign.config.problems import explain
from metaalign.config.serve import ServeConfig
from metaalign.config.sft import SFTConfig
from metaalign.config.written import Written, read_override, read_yaml, sections_in, settle
from metaalign.errors import ConfigError

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
        settings = read_yaml(text) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the config file cannot be read: {error}") from error
    except yaml.YAMLError as error:
        said = str(error).replace("<unicode string>", Path(path).name)
        raise ConfigError(f"{path}: not valid YAML: {said}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: expected settings as `key: value`, got {settings!r}")
    for override in overrides:
        _apply(settings, override)
    try:
        return model.model_validate(settle(settings, model))
    except ValidationError as error:
        raise ConfigError(explain(model, error, Path(path).name)) from None


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
        place[int(last)] = read_override(value)
    else:
        place[last] = read_override(value)


def _enter(settings: Any, section: str, override: str) -> Any:
    if isinstance(settings, list) and section.isdigit() and int(section) < len(settings):
        return settings[int(section)]
    if isinstance(settings, dict):
        found = settings.get(section)
        settings[section] = found.value if isinstance(found, Written) else found
        if settings[section] is None:
            settings[section] = {}
        if isinstance(settings[section], dict | list):
            return settings[section]
    raise ConfigError(f"override {override!r}: {section!r} is not a section")


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
    return between, [section for each in types for section in sections_in(each)]


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
