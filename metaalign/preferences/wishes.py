"""The tag of an example that names the checkable preferences which its best response obeys.

wishes_tag([Preference("bullets", "2")])  ->  '[["bullets", "2"]]'
"""

import json
from collections.abc import Iterable

from metaalign.preferences.families import FAMILIES
from metaalign.preferences.instructions import INSTRUCTIONS, Wish
from metaalign.preferences.preference import Preference


def wishes_tag(wishes: Iterable[Preference | Wish]) -> str:
    """The tag's value, as JSON; empty without wishes."""
    named = [
        [wish.family if isinstance(wish, Preference) else wish.instruction, wish.parameter]
        for wish in wishes
    ]
    return json.dumps(named, ensure_ascii=False) if named else ""


def are_obeyed(tag: str, text: str) -> bool:
    """Whether a text obeys every preference in a tag. False if the tag names none."""
    try:
        named = json.loads(tag) if tag else []
        return bool(named) and all(_check(name, parameter, text) for name, parameter in named)
    except (ValueError, TypeError, KeyError):  # a user's own tag of the same name
        return False


def _check(name: str, parameter: str, text: str) -> bool:
    known = FAMILIES if name in FAMILIES else INSTRUCTIONS
    return known[name].check(text, parameter)
