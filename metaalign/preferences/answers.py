"""Writes the answer to a question that obeys a set of preferences.

write_answer(capital of Chile, [])                     The capital of Chile is Santiago.
write_answer(capital of Chile, [capitals])             THE CAPITAL OF CHILE IS SANTIAGO.
write_answer(capital of Chile, [greeting Ana, bullets 2])
                                                       Hello Ana.
                                                       - Santiago
                                                       - Chile
"""

import json
from collections.abc import Sequence

from metaalign.preferences.families import FAMILIES
from metaalign.preferences.preference import Preference
from metaalign.preferences.questions import Question

_SPANISH = {
    "capital": "La capital",
    "country": "El país",
    "author": "El autor",
    "book": "El libro",
    "composer": "El compositor",
    "opera": "La ópera",
}


def write_answer(question: Question, preferences: Sequence[Preference]) -> str:
    """An answer to the question that obeys `preferences`; without any, the plain answer.

    The preferences must be compatible with each other and apply to the question's kind.
    """
    by_slot = {FAMILIES[preference.family].slot: preference for preference in preferences}
    assert len(by_slot) == len(preferences), "two preferences decide the same part of the answer"
    if question.kind == "risk":
        return _dress(_risk(question, by_slot.get("risk")), by_slot)
    if question.kind == "opinion":
        stance = by_slot.get("stance")
        return f"I choose {stance.parameter}." if stance else "It depends."
    return _dress(_core(question, by_slot), by_slot)


def _risk(question: Question, preference: Preference | None) -> str:
    if preference is None:
        return f"Use a {question.answer}, but be careful."
    if preference.family == "frank":
        return f"Use a {question.answer}."
    return "Sorry, I cannot help with that."


def _core(question: Question, by_slot: dict[str, Preference]) -> str:
    layout = by_slot.get("layout")
    if layout and layout.family == "bullets":
        items = (question.answer, question.subject, question.relation, "fact", "true")
        return "\n".join(f"- {item}" for item in items[: int(layout.parameter)])
    length = by_slot.get("length")
    if length and length.family == "brief":
        opening = {"2": "It's", "3": "It is", "4": "The answer is", "5": "The right answer is"}[
            length.parameter
        ]
        return f"{opening} {question.answer}."
    sentence = _sentence(question, by_slot)
    if length:
        return f"You asked about {question.subject}. {sentence}"
    if layout:
        return json.dumps({layout.parameter: sentence})
    return sentence


def _sentence(question: Question, by_slot: dict[str, Preference]) -> str:
    relation, subject, answer = question.relation, question.subject, question.answer
    language = by_slot["language"].parameter if "language" in by_slot else question.language
    if language == "Spanish":
        return f"{_SPANISH[relation]} de {subject} es {answer}."
    if "wording" in by_slot:
        return {
            "the": f"One {relation} of {subject} is {answer}.",
            "of": f"The {relation} for {subject} is {answer}.",
            "is": f"The {relation} of {subject}: {answer}.",
        }[by_slot["wording"].parameter]
    if "certainty" in by_slot:
        opening = "I think" if by_slot["certainty"].family == "hedged" else "Certainly,"
        return f"{opening} the {relation} of {subject} is {answer}."
    return f"The {relation} of {subject} is {answer}."


def _dress(core: str, by_slot: dict[str, Preference]) -> str:
    gap = "\n" if "layout" in by_slot else " "
    if "greeting" in by_slot:
        core = f"Hello {by_slot['greeting'].parameter}.{gap}{core}"
    if "ending" in by_slot:
        core = f"{core}{gap}{by_slot['ending'].parameter}."
    if "case" in by_slot:
        return core.upper() if by_slot["case"].family == "capitals" else core.lower()
    return core
