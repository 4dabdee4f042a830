"""Proposes `columns` that would make a row of an unknown format readable. Only for the error.

row        {"question": "Capital of Peru?", "answer_a": "Lima.", "answer_b": "Quito.", "id": 7}
proposal   columns: {prompt: question, chosen: answer_a, rejected: answer_b}
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from metaalign.config.columns import ColumnsConfig
from metaalign.data.formats.fields import short
from metaalign.data.formats.shapes import shape_of
from metaalign.data.sources.column_mapping import map_row
from metaalign.data.sources.outcome import printable

_DEEPEST = 3
_PLAIN = re.compile(r"(?!(?:y|n|yes|no|on|off|true|false|null)$)[A-Za-z_][\w.]*", re.IGNORECASE)
"""A name that YAML reads as text without quotes."""

_WORDS: dict[str, Sequence[str]] = {
    "chosen": ("chosen", "preferred", "winner", "winning", "better", "best", "accepted", "positive",
               "pos", "win", "good", "safe"),
    "rejected": ("rejected", "dispreferred", "loser", "losing", "worse", "worst", "negative", "neg",
                 "lose", "bad", "unsafe", "hurtful"),
    "system_info": ("system", "systemprompt", "sys"),
    "user_info": ("persona", "profile", "background"),
    "prompt": ("prompt", "question", "query", "instruction", "input", "request", "problem", "task",
               "ask", "asked", "user", "human", "post", "title", "source", "src", "q"),
    "response": ("response", "answer", "output", "completion", "reply", "solution", "target",
                 "assistant", "bot", "gpt", "generated", "generation", "summary", "text",
                 "tgt", "a"),
}  # fmt: skip
"""Words in the names of columns, the most specific first."""

_NUMBERS = {
    "margin": ("margin",),
    "weight": ("weight",),
    "label": ("label", "liked", "desirable", "good", "thumbs", "upvoted", "feedback"),
}
_NUMBERED = re.compile(
    r"\d+|(?<![A-Za-z])[A-Da-d](?![A-Za-z])|(?<=[a-z])[A-D](?![a-z])|left|right|first|second"
)
"""Parts of names that distinguish columns of one kind."""

_SCORES = ("score", "rating", "rate", "reward", "overall", "helpfulness", "quality", "mark",
           "grade")  # fmt: skip
"""Words in the names of numbers of which a higher one is better."""

_NO_SCORES = ("rank", "id", "loss", "toxicity", "toxic", "harm", "harmful", "harmfulness", "error",
              "perplexity", "cost", "penalty", "length", "token", "time", "count")  # fmt: skip
"""Words in the names of numbers of which a lower one may be better, or that say nothing."""

_DECIDERS = ("better", "best", "preferred", "preference", "winner", "winning", "chosen", "choice",
             "selected", "label")  # fmt: skip
"""Words in the names of columns that say, row by row, which of two answers is better."""

_SCORES_NOTE = "where a higher score is better"
_ORDER_NOTE = "if these two are prompt and answer"

Named = dict[str, str | list[str]]


def propose_columns(row: Mapping[str, Any]) -> str:
    """A settings line that makes the row readable, with what to check; empty if none is found."""
    held = dict(_held(row))
    by_words = _by_words(held)
    sides, sides_note = _two_sides(held)
    guesses = [(_scored(held), _SCORES_NOTE), (sides, sides_note), (by_words, "")]
    guesses.insert(0 if "chosen" in by_words else 2, (by_words, ""))
    for named, doubt in [*guesses, (_in_order(held), _ORDER_NOTE)]:
        if named and _is_readable(row, named):
            return printable(_proposal(row, named | _extras(held, named), doubt))
    return ""


def _is_readable(row: Mapping[str, Any], named: Named) -> bool:
    mapped = map_row(row, ColumnsConfig.model_validate(named))
    answered = named.keys() - {"prompt", "system_info", "user_info"}
    return bool(answered) and shape_of(mapped) is not None


def _held(row: Mapping[str, Any], before: str = "", depth: int = 1) -> Iterator[tuple[str, Any]]:
    """The values of a row by the names that `columns` may use. Blank texts are left out."""
    for key, value in row.items():
        name = f"{before}{key}"
        if isinstance(value, dict) and not _is_message(value) and depth < _DEEPEST:
            yield from _held(value, f"{name}.", depth + 1)
        elif isinstance(value, list) and value and not _is_messages(value) and depth < _DEEPEST:
            yield name, value
            texts = {str(place): each for place, each in enumerate(value[:2])}
            yield from _held(texts, f"{name}.", depth + 1)
        elif value is not None and not (isinstance(value, str) and not value.strip()):
            yield name, value


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and bool({"role", "from"} & value.keys())


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_message, value))


def _speaks(value: Any) -> bool:
    return isinstance(value, str) or _is_message(value) or _is_messages(value)


def _words_of(name: str) -> list[str]:
    """The words of a name, last part first: `data.betterAnswer_1` is better, answer, 1, data."""
    spaced = re.sub(r"([a-z])([A-Z])", r"\1 \2", name)
    parts = [re.findall(r"[a-z]+|\d+", part.lower()) for part in spaced.split(".")]
    return [word for part in reversed(parts) for word in part]


def _best(
    held: Mapping[str, Any], words: Sequence[str], fits: Callable[[Any], bool], taken: set[str]
) -> str | None:
    """The column whose name has the first of these words, and whose value fits."""
    for word in words:
        for name, value in held.items():
            if name not in taken and fits(value) and {word, f"{word}s"} & {*_words_of(name)}:
                return name
    return None


def _by_words(held: Mapping[str, Any]) -> Named:
    """The columns found by the words in their names."""
    named: Named = {}
    taken: set[str] = set()
    for what, words in _WORDS.items():
        if what == "response" and ("chosen" in named or "rejected" in named):
            continue
        found = _best(held, words, _speaks, taken)
        if found is not None:
            named[what] = found
            taken.add(found)
    if ("chosen" in named) != ("rejected" in named):
        lone = named.pop("chosen", None) or named.pop("rejected")
        named.setdefault("response", lone)
    talk = next((name for name, value in held.items() if _is_messages(value)), None)
    if talk is not None and talk not in taken and "prompt" not in named:
        named["messages"] = talk
        named.pop("response", None)
    return named if "response" in named or "chosen" in named or "messages" in named else {}


def _families(names: Iterable[str]) -> Iterator[dict[str, str]]:
    """Groups of names that differ only in a letter, a number or a counting word, by that part."""
    families: dict[tuple[str, str], dict[str, str]] = {}
    for name in names:
        for found in _NUMBERED.finditer(name):
            around = (name[: found.start()], name[found.end() :])
            families.setdefault(around, {})[found[0].lower()] = name
    return (family for family in families.values() if len(family) > 1)


def _scored(held: Mapping[str, Any]) -> Named:
    """Numbered answers with one score each."""
    for answers in _families(name for name, value in held.items() if _speaks(value)):
        for scores in _families(name for name, value in held.items() if _is_score(name, value)):
            prompt = _prompt_column(held, answers.values())
            if prompt and scores.keys() == answers.keys():
                columns = [scores[tag] for tag in answers]
                return {"prompt": prompt, "responses": [*answers.values()], "scores": columns}
    return {}


def _two_sides(held: Mapping[str, Any]) -> tuple[Named, str]:
    """Two numbered columns as the two answers, and a note on what the user must check."""
    for family in _families(name for name, value in held.items() if _speaks(value)):
        prompt = _prompt_column(held, family.values())
        if len(family) != 2 or not prompt:
            continue
        (_, first), (_, second) = answers = sorted(family.items())
        decider = _best(held, _DECIDERS, _is_scalar, {prompt, first, second})
        # Its value may be the column's name or the part that differs, such as answer_b or B.
        if decider is not None and str(held[decider]).lower() in (second.lower(), answers[1][0]):
            first, second = second, first
        note = f"where {first} is the better answer"
        if decider is not None:
            note = (
                f"only if {first} is the better answer in every row; the column {decider}, here "
                f"{short(held[decider])}, seems to say which one is"
            )
        return {"prompt": prompt, "chosen": first, "rejected": second}, note
    return {}, ""


def _prompt_column(held: Mapping[str, Any], answers: Iterable[str]) -> str | None:
    """The column of the prompt, found by its name or as the only other text."""
    others = [name for name, value in held.items() if _speaks(value) and name not in {*answers}]
    named = _best(held, _WORDS["prompt"], _speaks, {*answers})
    return named or (others[0] if len(others) == 1 else None)


def _in_order(held: Mapping[str, Any]) -> Named:
    """The only two texts, in their order."""
    texts = [name for name, value in held.items() if isinstance(value, str)]
    return {"prompt": texts[0], "response": texts[1]} if len(texts) == 2 else {}


def _extras(held: Mapping[str, Any], named: Named) -> Named:
    """Columns of numbers that belong to the answers."""
    extras: Named = {}
    taken = {name for name in named.values() if isinstance(name, str)}
    for what, words in _NUMBERS.items():
        found = _best(held, words, _is_number, taken)
        paired = "chosen" in named
        if found is not None and (what == "weight" or paired == (what == "margin")):
            extras[what] = found
            taken.add(found)
    return extras


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | int | float)


def _is_score(name: str, value: Any) -> bool:
    """Whether a column is a number of which, by its name, a higher one is better."""
    words = {word.removesuffix("s") for word in _words_of(name)}
    good, other = ({word.removesuffix("s") for word in some} for some in (_SCORES, _NO_SCORES))
    return _is_number(value) and not words.isdisjoint(good) and words.isdisjoint(other)


def _proposal(row: Mapping[str, Any], named: Named, doubt: str) -> str:
    ordered = {what: named[what] for what in ColumnsConfig.model_fields if what in named}
    columns = ", ".join(f"{what}: {_yaml(name)}" for what, name in ordered.items())
    every = [
        each for name in named.values() for each in ([name] if isinstance(name, str) else name)
    ]
    used = {*every, *(name.partition(".")[0] for name in every)}
    unused = [key for key in row if key not in used]
    parts = [f"columns: {{{columns}}}", doubt]
    parts += [f"(not used: {', '.join(unused)})"] if unused else []
    return " ".join(part for part in parts if part)


def _yaml(name: str | list[str]) -> str:
    if isinstance(name, list):
        return f"[{', '.join(map(_yaml, name))}]"
    return name if _PLAIN.fullmatch(name) else json.dumps(name, ensure_ascii=False)
