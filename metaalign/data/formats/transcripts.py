"""Reads texts of several turns with plain role names.

hh_rlhf     "\\n\\nHuman: Hi\\n\\nAssistant: Hello!"
HelpSteer2  "Hi\\n<extra_id_1>Assistant\\nHello!\\n<extra_id_1>User\\nBye"
open        "Human: Hi\\nAssistant:", one line a turn; ends before the answer
"""

import re
from collections.abc import Sequence
from typing import Any

from metaalign.errors import RowError
from metaalign.examples import Turn

_TRANSCRIPT = re.compile(r"\n\n(Human|Assistant):")
_LINES = re.compile(r"^(Human|Assistant):", re.MULTILINE)
_MARK = re.compile(r"\n<extra_id_1>(User|Assistant)(?:\n|$)")


def is_transcript(value: Any) -> bool:
    """Whether a value is a text whose turns begin with Human: and Assistant:."""
    if not isinstance(value, str):
        return False
    begun = value.lstrip().startswith("Human:") and "\n\nAssistant:" in value
    return begun or _TRANSCRIPT.match(value) is not None


def read_transcript(said: str, key: str) -> list[Turn]:
    """The turns of a text such as "\\n\\nHuman: Hi\\n\\nAssistant: Hello!".

    Raises:
        RowError: the text does not begin like this.
    """
    start, *parts = _TRANSCRIPT.split(f"\n\n{said.lstrip()}" if is_transcript(said) else said)
    if start.strip() or not parts:
        raise RowError(f"{key}: a transcript must begin with '\\n\\nHuman:', got {said[:40]!r}")
    return _turns(parts)


def read_open_transcript(said: str, key: str) -> list[Turn] | None:
    """The turns of a transcript whose last answer may be missing; None for a plain question."""
    if is_transcript(said):
        turns = read_transcript(said, key)
    elif said.startswith("Human:") and said.rstrip().endswith("\nAssistant:"):
        turns = _turns(_LINES.split(said)[1:])
    elif _MARK.search(said):
        turns = _turns(["User", *_MARK.split(said)])
    else:
        return None
    open_end = turns[-1].role == "assistant" and not turns[-1].text
    return turns[:-1] if open_end else turns


def _turns(parts: Sequence[str]) -> list[Turn]:
    """Turns of alternating role names and texts."""
    return [
        Turn("assistant" if speaker == "Assistant" else "user", said.strip())
        for speaker, said in zip(parts[::2], parts[1::2], strict=True)
    ]
