"""Preferences that code can phrase in words, follow in an answer, and check.

`questions` holds questions with known answers, `families` the preferences and their checks, and
`answers` writes answers that obey preferences. Uses no model and no tokenizer.
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
