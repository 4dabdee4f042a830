"""Rewrites an answer into a form, such as a bullet list, without changing its content."""

import json
import re
from collections.abc import Callable
from itertools import pairwise

Obey = Callable[[str, str], str | None]
"""Takes an answer and a parameter; returns the rewritten answer, or None if that is impossible."""

SECTION = "\n\n***\n\n"


def sentences(text: str) -> list[str]:
    """The sentences of a text, without the whitespace between them."""
    return re.split(r"(?<=[.!?])\s+", text.strip())


def _groups(text: str, count: str) -> list[str] | None:
    """The text in `count` runs of sentences; None if it has fewer sentences."""
    found, number = sentences(text), int(count)
    if len(found) < number:
        return None
    cuts = [round(i * len(found) / number) for i in range(number + 1)]
    return [" ".join(found[start:stop]) for start, stop in pairwise(cuts)]


def bulleted(text: str, count: str) -> str | None:
    """The text as `count` bullets; None if it has bullets already, or too few sentences."""
    groups = None if bullets(text) else _groups(text.replace("\n", " "), count)
    return None if groups is None else "\n".join(f"* {group}" for group in groups)


def bullets(text: str) -> list[str]:
    """The markers of the text's bullets, such as "* "."""
    return re.findall(r"^\s*[*-] ", text, re.MULTILINE)


def in_sections(text: str, count: str) -> str | None:
    """The text as `count` sections, separated by ***; None if it has *** already, or too few
    sentences."""
    groups = None if "***" in text else _groups(text, count)
    return None if groups is None else SECTION.join(groups)


def shortened(text: str, most: str) -> str | None:
    """The first `most` sentences of the text; None if it has no more than that."""
    found = sentences(text)
    return " ".join(found[: int(most)]) if len(found) > int(most) else None


def uncased(text: str, change: Callable[[str], str]) -> str | None:
    """The text in another case; None unless it has both upper-case and lower-case letters."""
    return None if text in (text.upper(), text.lower()) else change(text)


def titled(text: str, _: str) -> str | None:
    """The text under a title in << >> of its first four words; None if it contains <<."""
    return None if "<<" in text else f"<<{' '.join(text.split()[:4]).strip('.,:;')}>>\n\n{text}"


def as_json(text: str, key: str) -> str | None:
    """A JSON object with the text under `key`; None if the text starts with a brace."""
    return None if text.startswith("{") else json.dumps({key: text}, ensure_ascii=False)


def is_json(text: str, key: str) -> bool:
    """Whether the text is a JSON object with `key` as its only key."""
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return isinstance(value, dict) and list(value) == [key]


def unchanged_if(test: Callable[[str], bool]) -> Obey:
    """A rewriting that returns the text unchanged if it passes the test, else None."""
    return lambda text, _: text if test(text) else None
