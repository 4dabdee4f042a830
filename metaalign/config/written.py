"""Settings as they were written: YAML read so that `1.10` is text where a setting takes text.

YAML takes 2024, 007, 1.10, yes and 2024-01-31 for numbers, truth values and dates. `read_yaml`
keeps the text of each beside its value, and `settle` chooses by the type of the setting. Knows no
setting.
"""

import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import yaml
from pydantic import BaseModel

_TAG = "tag:yaml.org,2002:"
_NULLS = ("", "~", "null", "Null", "NULL")
_QUOTES = ("'", '"', "|", ">")


@dataclass(frozen=True)
class Written:
    """A value beside the text that it was read from."""

    value: Any
    text: str


class _Loader(yaml.SafeLoader):
    """Keeps the text of what is no text; refuses a key that stands twice."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        """The mapping, its keys as text."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == f"{_TAG}merge":
                continue
            key.tag = f"{_TAG}str"
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            seen.add(key.value)
        return node


def _kept(tag: str) -> None:
    construct = yaml.SafeLoader.yaml_constructors[f"{_TAG}{tag}"]

    def keep(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
        try:
            return Written(construct(loader, node), node.value)
        except ValueError:  # 2024-13-45 looks like a date and is none
            return node.value

    _Loader.add_constructor(f"{_TAG}{tag}", keep)


for _tag in ("int", "float", "bool", "timestamp"):
    _kept(_tag)


def read_yaml(text: str) -> Any:
    """What the YAML says; each number, truth value and date is a `Written`.

    Raises:
        yaml.YAMLError: it is no YAML, or a key stands twice.
    """
    return yaml.load(text, _Loader)


def read_override(text: str) -> Any:
    """The right side of `section.key=value`. Text that is no YAML, such as "*.json", stays text."""
    if text in _NULLS:
        return None
    try:
        value = read_yaml(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, dict) and not text.lstrip().startswith("{"):  # "Answer so: briefly"
        return text
    if isinstance(value, str) and text.startswith(_QUOTES):
        return value
    return Written(value.value if isinstance(value, Written) else value, text)


def settle(value: Any, annotation: Any) -> Any:
    """The plain value, each `Written` in it as a setting of this type takes it.

    Args:
        annotation: A section, or the type of a setting.
    """
    choices = [*choices_of(annotation)]
    if isinstance(value, Written):
        return value.text if _is_text(value, choices) else settle(value.value, annotation)
    if isinstance(value, dict):
        return {key: settle(item, type_inside(choices, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [settle(item, type_inside(choices, place)) for place, item in enumerate(value)]
    return value


def choices_of(annotation: Any) -> Iterator[Any]:
    """The types of a union; of any other type the type itself."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        yield from choices_of(typing.get_args(annotation)[0])
    elif origin in (typing.Union, types.UnionType):
        for part in typing.get_args(annotation):
            yield from choices_of(part)
    else:
        yield annotation


def _is_text(written: Written, choices: list[Any]) -> bool:
    if any(written.text in typing.get_args(each) for each in choices if _is_literal(each)):
        return True
    if str not in choices:
        return False
    value = written.value
    if isinstance(value, dict | list):
        return not any(typing.get_origin(each) in (dict, tuple) for each in choices)
    if isinstance(value, bool | int | float):
        return type(value) not in choices and not (type(value) is int and float in choices)
    return True


def _is_literal(annotation: Any) -> bool:
    return typing.get_origin(annotation) is Literal


def sections_in(annotation: Any) -> list[type[BaseModel]]:
    """The sections among the types of a union."""
    types = choices_of(annotation)
    return [each for each in types if isinstance(each, type) and issubclass(each, BaseModel)]


def type_inside(choices: list[Any], place: str | int) -> Any:
    """The type of what stands under a key of a mapping or at a place of a list."""
    for each in choices:
        origin, arguments = typing.get_origin(each), typing.get_args(each)
        for section in sections_in(each):
            if place in section.model_fields:
                return section.model_fields[str(place)].annotation
        if origin is dict and isinstance(place, str):
            return arguments[1]
        if origin is tuple and isinstance(place, int):
            return arguments[min(place, len(arguments) - 1 - (Ellipsis in arguments))]
    return Any
