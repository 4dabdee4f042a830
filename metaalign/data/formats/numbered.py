"""Reads two numbered or lettered answers and which is better. One row of each format:

helpsteer   {"prompt": "Hi", "response_1": "Hello!", "response_2": "Go.",
             "preference_strength": -2}, or of HelpSteer3
            {"context": [{"role": "user", "content": "Hi"}], "response1": "Hello!",
             "response2": "Go.", "overall_preference": -2}
arena       {"conversation_a": [...], "conversation_b": [...], "winner": "model_a"}, or
            {"prompt": "Hi", "response_a": "Hello!", "response_b": "Go.", "winner": "model_a"}, or
            in place of the winner "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0; the
            prompt and both answers may be JSON texts such as "[\\"Hi\\"]", a list of all turns
pandalm     {"instruction": "Hi", "input": "", "response1": "Hello!", "response2": "Go.",
             "annotator1": 1, "annotator2": 1, "annotator3": 2}
numbered    {"instruction": "Hi", "input": "", "output_1": "Hello!", "output_2": "Go.",
             "preference": 1}, or with the better one's name for any two answers:
            {"prompt": "Hi", "response_1": "Hello!", "response_2": "Go.", "winner": "response_1"}

Below 0, HelpSteer's preference is for the first answer: -3 is "Response 1 is much better than
Response 2", 3 the other way round, 0 about the same,
https://huggingface.co/datasets/nvidia/HelpSteer3. The Arena's winner is model_a, model_b, tie or
"tie (bothbad)", https://huggingface.co/datasets/lmsys/chatbot_arena_conversations. Turns as JSON
text are of https://huggingface.co/datasets/lmsys/lmsys-arena-human-preference-55k. PandaLM's
annotators give 1 or 2, or 0 for a tie, and the majority decides,
https://github.com/WeOpenML/PandaLM. AlpacaFarm's preference is 1 or 2,
https://github.com/tatsu-lab/alpaca_farm. A number in any other data may count from 0 or from 1, so
it is refused there.
"""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from metaalign.data.formats.fields import as_number, number, one_of, short
from metaalign.data.formats.messages import Dialogue, one_system, read_messages
from metaalign.data.formats.prompts import read_prompt, read_system, refuse_beside
from metaalign.data.formats.sides import Keys, read_sides
from metaalign.data.sources.options import SourceOptions
from metaalign.errors import RowError
from metaalign.examples import PREFERENCE, Example, Response, Source

Row = Mapping[str, Any]

HELPSTEER_2: Keys = ("response_1", "response_2")
HELPSTEER_3: Keys = ("response1", "response2")
STRENGTHS = {"preference_strength": HELPSTEER_2, "overall_preference": HELPSTEER_3}
"""Keys of HelpSteer's preference, and of the two answers beside it."""
_STRONGEST = 3

ARENA: tuple[Keys, ...] = (("conversation_a", "conversation_b"), ("response_a", "response_b"))
ONE_HOT = ("winner_model_a", "winner_model_b", "winner_tie")
PANDALM: Keys = ("response1", "response2")
ALPACA_FARM: Keys = ("output_1", "output_2")
NUMBERED: tuple[Keys, ...] = (
    ALPACA_FARM,
    HELPSTEER_2,
    HELPSTEER_3,
    ("output1", "output2"),
    ("answer_1", "answer_2"),
    ("answer1", "answer2"),
    ("completion_1", "completion_2"),
    ("answer_a", "answer_b"),
    ("output_a", "output_b"),
)
WINNERS = ("winner", "preference", "preferred")
"""Keys that name the better answer."""

_EQUAL = (0.5, 0.5)
_FIRST, _SECOND = (1.0, 0.0), (0.0, 1.0)
_TIES = ("tie", "draw", "equal", "same", "both")
_BOTH_BAD = ("tie (bothbad)", "bothbad", "both_bad", "both bad")


def answers_of(row: Row, known: tuple[Keys, ...]) -> Keys | None:
    """The first of the known pairs of keys that a row has; None if it has none."""
    there = (keys for keys in known if all(row.get(key) is not None for key in keys))
    return next(there, None)


def annotators_of(row: Row) -> list[str]:
    """The keys of PandaLM's annotators in a row."""
    return sorted(key for key in row if key.startswith("annotator") and key[9:].isdecimal())


def read_helpsteer(row: Row, source: Source, options: SourceOptions) -> list[Example]:
    """A pair; the score of the better answer is how much better it is, from 1 to 3."""
    key = one_of(row, tuple(STRENGTHS), "a preference")
    strength = number(row, key)
    if abs(strength) > _STRONGEST:
        raise RowError(
            f"{key}: expected a number from -{_STRONGEST}, where the first answer is much better, "
            f"to {_STRONGEST}, got {short(row[key])}"
        )
    _refuse_contradiction(row, key, strength)
    context = row.get("context")
    if isinstance(context, list):
        said = read_messages(row, "context")
        prompt = Dialogue(said.turns, one_system(said.system_info, read_system(row)))
    else:
        prompt = _prompt(row)
    scores = (max(0.0, -strength), max(0.0, strength))
    return [_judged(row, prompt, STRENGTHS[key], scores, source)]


def _refuse_contradiction(row: Row, key: str, strength: float) -> None:
    """Compare the number with HelpSteer2's statement in words of which answer is better."""
    said = row.get("preference_statement")
    for place, sign in ((1, -1), (2, 1)):
        says = isinstance(said, str) and said.startswith(f"@Response {place} is")
        if says and "better" in str(said) and strength * sign < 0:
            raise RowError(
                f"{key}: {short(row[key])} and preference_statement {short(said)} differ"
            )


def read_arena(row: Row, source: Source, options: SourceOptions) -> list[Example]:
    """A pair. If both answers are bad, neither is desirable."""
    keys = answers_of(row, ARENA)
    if keys is None:
        raise RowError("two answers are missing")
    is_json = keys == ARENA[1] and has_turns_as_json(row)
    if is_json:
        refuse_beside(row, "prompt")
        row = _with_conversations(row)
    is_whole = is_json or keys == ARENA[0]
    prompt = Dialogue([], read_system(row)) if is_whole else _prompt(row)
    if row.get("winner") is None:
        return [_judged(row, prompt, keys, _one_hot(row), source)]
    return [_named(row, prompt, keys, "winner", source)]


def has_turns_as_json(row: Row) -> bool:
    """Whether the prompt and both lettered answers are JSON texts of lists of turns."""
    return all(_turns(row.get(key)) is not None for key in ("prompt", *ARENA[1]))


def _turns(value: Any) -> list[str | None] | None:
    """The turns in a JSON text, null where an answer is missing; None for any other value."""
    if not isinstance(value, str) or not value.startswith("["):
        return None
    try:
        turns = json.loads(value)
    except (ValueError, RecursionError):
        return None
    is_turns = bool(turns) and all(isinstance(said, str | None) for said in turns)
    return turns if is_turns else None


def _with_conversations(row: Row) -> Row:
    """The row with a conversation in place of each answer that is turns as JSON text."""
    asked = _turns(row["prompt"]) or []
    talks = {}
    for key in ARENA[1]:
        answers = _turns(row[key]) or []
        if len(answers) != len(asked):
            wanted = f"{key}: the number of turns must be that of prompt, {len(asked)}"
            raise RowError(f"{wanted}, got {len(answers)}")
        talks[key] = [
            {"role": role, "content": said}
            for exchange in zip(asked, answers, strict=True)
            for role, said in zip(("user", "assistant"), exchange, strict=True)
        ]
    return {**row, **talks}


def _one_hot(row: Row) -> tuple[float, float]:
    values = [number(row, key, 0.0) for key in ONE_HOT]
    if sorted(values) != [0, 0, 1]:
        raise RowError(f"{', '.join(ONE_HOT)}: expected one 1 and two 0, got {short(values)}")
    return (_FIRST, _SECOND, _EQUAL)[values.index(1)]


def read_pandalm(row: Row, source: Source, options: SourceOptions) -> list[Example]:
    """A pair in the order that most annotators chose."""
    verdicts = {key: row[key] for key in annotators_of(row) if row[key] is not None}
    votes = Counter(as_number(value, key) for key, value in verdicts.items())
    unknown = next((value for value in verdicts.values() if float(value) not in (0, 1, 2)), None)
    if unknown is not None:
        raise RowError(f"annotators: expected 1, 2, or 0 for a tie, got {short(unknown)}")
    (vote, most), *others = votes.most_common() or [(0.0, 0)]
    if not most or (others and others[0][1] == most):
        raise RowError(
            f"annotators: no verdict has the most votes, got {short([*verdicts.values()])}"
        )
    scores = {0: _EQUAL, 1: _FIRST, 2: _SECOND}[int(vote)]
    return [_judged(row, _prompt(row), PANDALM, scores, source)]


def read_numbered(row: Row, source: Source, options: SourceOptions) -> list[Example]:
    """A pair whose better answer is named, or numbered as in AlpacaFarm."""
    keys = answers_of(row, NUMBERED)
    if keys is None:
        raise RowError("two answers are missing")
    key = one_of(row, WINNERS, "the better answer")
    if row.get(key) is None:
        raise RowError(f"{key} is missing; nobody compared the answers")
    if keys == ALPACA_FARM and key == "preference":
        counted = {"1": _FIRST, "2": _SECOND, "1.0": _FIRST, "2.0": _SECOND}
        scores = counted.get(str(row[key]))
        if scores is not None:
            return [_judged(row, _prompt(row), keys, scores, source)]
    return [_named(row, _prompt(row), keys, key, source)]


def _named(row: Row, prompt: Dialogue, keys: Keys, key: str, source: Source) -> Example:
    name = row[key].strip().lower() if isinstance(row[key], str) else row[key]
    if name in _BOTH_BAD:
        return _judged(row, prompt, keys, _EQUAL, source, desirable=False)
    names = [{which, *_aliases(which)} for which in keys]
    found = [place for place in (0, 1) if isinstance(name, str) and name in names[place]]
    if not found and name not in _TIES:
        counted = "a number may count from 0 or from 1; " if not _is_word(name) else ""
        raise RowError(
            f"{key}: {counted}expected {keys[0]!r}, {keys[1]!r} or 'tie', got {short(row[key])}"
        )
    return _judged(row, prompt, keys, (_FIRST, _SECOND)[found[0]] if found else _EQUAL, source)


def _aliases(key: str) -> set[str]:
    """Other names of the answer under a key: a, model_a and assistant_a for response_a; response1,
    response 1 and model_1 for response_1. A bare number is not a name."""
    stem, mark = key[:-1].rstrip("_"), key[-1]
    names = {
        f"{name}{space}{mark}" for name in (stem, "model", "assistant") for space in ("_", "", " ")
    }
    return names | ({mark} if mark.isalpha() else set())


def _is_word(name: Any) -> bool:
    return isinstance(name, str) and not name.lstrip("-").replace(".", "").isdecimal()


def _prompt(row: Row) -> Dialogue:
    prompt = read_prompt(row)
    if prompt is None:
        raise RowError("the prompt is missing")
    return prompt


def _judged(
    row: Row,
    prompt: Dialogue,
    keys: Keys,
    scores: tuple[float, float],
    source: Source,
    *,
    desirable: bool | None = None,
) -> Example:
    before, *answers = read_sides(row, prompt, keys)
    responses = tuple(
        Response(said, {PREFERENCE: score}, desirable)
        for said, score in zip(answers, scores, strict=True)
    )
    return Example(tuple(before.turns), responses, source, system_info=before.system_info)
