"""Which `columns` would make a row of an unknown shape a known one. Told in the error, never used.

row        {"question": "Capital of Peru?", "answer_a": "Lima.", "answer_b": "Quito.", "id": 7}
proposal   columns: {prompt: question, chosen: answer_a, rejected: answer_b}
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from metaalign.config.columns import ColumnsConfig
from metaalign.data.formats.shapes import shape_of
from metaalign.data.sources.column_mapping import map_row
from metaalign.data.sources.outcome import printable

_DEEPEST = 3
_PLAIN = re.compile(r"(?!(?:y|n|yes|no|on|off|true|false|null)$)[A-Za-z_][\w.]*", re.IGNORECASE)
"""A name that YAML takes for a text as it stands."""

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
"""Words in the names of columns, the more telling ones first."""

_NUMBERS = {
    "margin": ("margin",),
    "weight": ("weight",),
    "label": ("label", "liked", "desirable", "good", "thumbs", "upvoted", "feedback"),
}
_NUMBERED = re.compile(
    r"\d+|(?<![A-Za-z])[A-Da-d](?![A-Za-z])|(?<=[a-z])[A-D](?![a-z])|left|right|first|second"
)
"""How columns of one name are told apart."""

_SIDES_TOLD = "where {chosen} is the better answer"
_ORDER_TOLD = "if these two are prompt and answer"

Named = dict[str, str | list[str]]


def propose_columns(row: Mapping[str, Any]) -> str:
    """A line for the settings that would make the row readable, and what to look at; or nothing."""
    held = dict(_held(row))
    by_words = _by_words(held)
    guesses = [(_scored(held), ""), (_two_sides(held), _SIDES_TOLD), (by_words, "")]
    guesses.insert(0 if "chosen" in by_words else 2, (by_words, ""))
    for named, doubt in [*guesses, (_in_order(held), _ORDER_TOLD)]:
        if named and _is_readable(row, named):
            return printable(_told(row, named | _extras(held, named), doubt))
    return ""


def _is_readable(row: Mapping[str, Any], named: Named) -> bool:
    mapped = map_row(row, ColumnsConfig.model_validate(named))
    answered = named.keys() - {"prompt", "system_info", "user_info"}
    return bool(answered) and shape_of(mapped) is not None


def _held(row: Mapping[str, Any], before: str = "", depth: int = 1) -> Iterator[tuple[str, Any]]:
    """What a row holds, by the names that `columns` may give it; blank text is nothing."""
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
    """The words of a name, its last part's first: `data.betterAnswer_1` is better, answer, 1."""
    spaced = re.sub(r"([a-z])([A-Z])", r"\1 \2", name)
    parts = [re.findall(r"[a-z]+|\d+", part.lower()) for part in spaced.split(".")]
    return [word for part in reversed(parts) for word in part]


def _best(
    held: Mapping[str, Any], words: Sequence[str], fits: Callable[[Any], bool], taken: set[str]
) -> str | None:
    """The column whose name has the most telling of these words, and whose value fits."""
    for word in words:
        for name, value in held.items():
            if name not in taken and fits(value) and {word, f"{word}s"} & {*_words_of(name)}:
                return name
    return None


def _by_words(held: Mapping[str, Any]) -> Named:
    """By what the names say."""
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
    """Names that are alike but for a letter, a number or a word that numbers them, by that."""
    families: dict[tuple[str, str], dict[str, str]] = {}
    for name in names:
        for found in _NUMBERED.finditer(name):
            around = (name[: found.start()], name[found.end() :])
            families.setdefault(around, {})[found[0].lower()] = name
    return (family for family in families.values() if len(family) > 1)


def _scored(held: Mapping[str, Any]) -> Named:
    """Numbered answers with a score each."""
    for answers in _families(name for name, value in held.items() if _speaks(value)):
        for scores in _families(name for name, value in held.items() if _is_number(value)):
            prompt = _asked(held, answers.values())
            if prompt and scores.keys() == answers.keys():
                columns = [scores[tag] for tag in answers]
                return {"prompt": prompt, "responses": [*answers.values()], "scores": columns}
    return {}


def _two_sides(held: Mapping[str, Any]) -> Named:
    """Two columns of one name as the two answers; which is the better one is not known."""
    for family in _families(name for name, value in held.items() if _speaks(value)):
        prompt = _asked(held, family.values())
        if len(family) == 2 and prompt:
            (_, first), (_, second) = sorted(family.items())
            return {"prompt": prompt, "chosen": first, "rejected": second}
    return {}


def _asked(held: Mapping[str, Any], answers: Iterable[str]) -> str | None:
    """The column of the prompt: by its name, or the only other text."""
    others = [name for name, value in held.items() if _speaks(value) and name not in {*answers}]
    named = _best(held, _WORDS["prompt"], _speaks, {*answers})
    return named or (others[0] if len(others) == 1 else None)


def _in_order(held: Mapping[str, Any]) -> Named:
    """The only two texts, in their order."""
    texts = [name for name, value in held.items() if isinstance(value, str)]
    return {"prompt": texts[0], "response": texts[1]} if len(texts) == 2 else {}


def _extras(held: Mapping[str, Any], named: Named) -> Named:
    """Numbers that belong to the answers."""
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


def _told(row: Mapping[str, Any], named: Named, doubt: str) -> str:
    ordered = {what: named[what] for what in ColumnsConfig.model_fields if what in named}
    columns = ", ".join(f"{what}: {_yaml(name)}" for what, name in ordered.items())
    every = [
        each for name in named.values() for each in ([name] if isinstance(name, str) else name)
    ]
    used = {*every, *(name.partition(".")[0] for name in every)}
    unused = [key for key in row if key not in used]
    told = [f"columns: {{{columns}}}", doubt.format_map(named)]
    told += [f"(not used: {', '.join(unused)})"] if unused else []
    return " ".join(part for part in told if part)


def _yaml(name: str | list[str]) -> str:
    if isinstance(name, list):
        return f"[{', '.join(map(_yaml, name))}]"
    return name if _PLAIN.fullmatch(name) else json.dumps(name, ensure_ascii=False)
