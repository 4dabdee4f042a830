"""Rewrites an answer so that it has a form, without changing what it says."""

import json
import re
from collections.abc import Callable
from itertools import pairwise

Obey = Callable[[str, str], str | None]
"""Takes an answer and a parameter; the answer as it obeys, or None where it cannot be made to."""

SECTION = "\n\n***\n\n"


def sentences(text: str) -> list[str]:
    """The sentences of a text, without what is between them."""
    return re.split(r"(?<=[.!?])\s+", text.strip())


def _groups(text: str, count: str) -> list[str] | None:
    """The sentences of a text in so many runs; None where there are fewer sentences."""
    said, number = sentences(text), int(count)
    if len(said) < number:
        return None
    cuts = [round(i * len(said) / number) for i in range(number + 1)]
    return [" ".join(said[start:stop]) for start, stop in pairwise(cuts)]


def bulleted(text: str, count: str) -> str | None:
    groups = None if bullets(text) else _groups(text.replace("\n", " "), count)
    return None if groups is None else "\n".join(f"* {group}" for group in groups)


def bullets(text: str) -> list[str]:
    return re.findall(r"^\s*[*-] ", text, re.MULTILINE)


def in_sections(text: str, count: str) -> str | None:
    groups = None if "***" in text else _groups(text, count)
    return None if groups is None else SECTION.join(groups)


def shortened(text: str, most: str) -> str | None:
    said = sentences(text)
    return " ".join(said[: int(most)]) if len(said) > int(most) else None


def uncased(text: str, change: Callable[[str], str]) -> str | None:
    """The text in another case, where it has letters of both."""
    return None if text in (text.upper(), text.lower()) else change(text)


def titled(text: str, _: str) -> str | None:
    return None if "<<" in text else f"<<{' '.join(text.split()[:4]).strip('.,:;')}>>\n\n{text}"


def as_json(text: str, key: str) -> str | None:
    return None if text.startswith("{") else json.dumps({key: text}, ensure_ascii=False)


def is_json(text: str, key: str) -> bool:
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return isinstance(value, dict) and list(value) == [key]


def unchanged_if(test: Callable[[str], bool]) -> Obey:
    """The text as it stands, where it passes."""
    return lambda text, _: text if test(text) else None
