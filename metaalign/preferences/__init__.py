"""Checkable preferences: say one in words, obey one, verify one.

`questions` holds what is asked and what is true, `families` the preferences and their checks,
`answers` writes the answer that obeys. Knows no model and no tokenizer.
"""

from metaalign.preferences.answers import write_answer
from metaalign.preferences.families import FAMILIES, Family
from metaalign.preferences.preference import Preference, compatible, obeyed
from metaalign.preferences.questions import QUESTIONS, Question

__all__ = [
    "FAMILIES",
    "QUESTIONS",
    "Family",
    "Preference",
    "Question",
    "compatible",
    "obeyed",
    "write_answer",
]
