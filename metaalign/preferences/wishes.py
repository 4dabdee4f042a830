"""Wishes as an example's tag carries them: which checkable preferences its best response obeys.

wishes_tag([Preference("bullets", "2")])  ->  '[["bullets", "2"]]'
"""

import json
from collections.abc import Iterable

from metaalign.preferences.families import FAMILIES
from metaalign.preferences.instructions import INSTRUCTIONS, Wish
from metaalign.preferences.preference import Preference


def wishes_tag(wishes: Iterable[Preference | Wish]) -> str:
    """The tag; empty where nothing is wished for."""
    told = [
        [wish.family if isinstance(wish, Preference) else wish.instruction, wish.parameter]
        for wish in wishes
    ]
    return json.dumps(told, ensure_ascii=False) if told else ""


def are_obeyed(tag: str, text: str) -> bool:
    """Whether a text obeys all that a tag names. Nothing obeys where nothing can be checked."""
    try:
        told = json.loads(tag) if tag else []
        return bool(told) and all(_check(name, parameter, text) for name, parameter in told)
    except (ValueError, TypeError, KeyError):  # a tag of the user's own
        return False


def _check(name: str, parameter: str, text: str) -> bool:
    known = FAMILIES if name in FAMILIES else INSTRUCTIONS
    return known[name].check(text, parameter)
