"""Several judged answers to one prompt. One row of each:

    rated         {"prompt": "Hi", "completions": [{"response": "Hello!", "overall_score": 8,
                   "annotations": {"helpfulness": {"Rating": "5"}}}, ...]}, or
                  {"prompt": "Hi", "responses": ["Hello!", "Go."], "scores": [8, 2]}
    metaaligner   {"query": "Hi", "goldens": "Hello!", "generated_text": "Hm."}
    truthfulqa    {"Question": "...", "Best Answer": "...", "Correct Answers": "...; ...",
                   "Incorrect Answers": "...; ..."}
    fine_grained  {"question": "...", "passages": [["title", "sentence", ...]],
                   "prediction 1": "...", ... 4, "preference": [1, 2, 0, 1, 1, 2],
                   "feedback": {"errors": [{"error type": "Redundant"}],
                                "missing-info": [{"error type": "Missing-Answer"}],
                                "corrected-prediction": "..."}}

In `preference` stand the pairs 1v2, 1v3, 1v4, 2v3, 2v4 and 3v4: 1 or 2 for the better side, 0 for a
tie. https://arxiv.org/abs/2306.01693
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from metaalign.data.formats.fields import items, mapping, number, short, text
from metaalign.data.formats.prompts import Dialogue, read_prompt
from metaalign.data.reading import Reading
from metaalign.errors import RowError
from metaalign.examples import PREFERENCE, Example, Response, Source, Turn

Scores = Mapping[str, float | None]

LISTS = ("completions", "responses", "answers", "generations")
"""Where several answers stand."""

_TEXTS = ("response", "text", "content", "answer", "completion")
_OVERALL = ("fine-grained_score", "overall_score", "score", "rating", "reward")
"""UltraFeedback's overall_score is known to be wrong in places, so its other one comes first."""
LIST_SCORES = ("scores", "ratings", "rewards", "ranks")
"""Where the scores of answers stand that are plain texts."""
OVERALL = "overall"
"""The objective of a score that names none."""
TRUTHFULNESS = "truthfulness"

PREDICTIONS = tuple(f"prediction {number}" for number in range(1, 5))
_OBJECTIVES = {
    "Irrelevant": "relevance",
    "Redundant": "relevance",
    "Incoherent": "relevance",
    "Wrong-Grounding": "factuality",
    "Unverifiable": "factuality",
    "Missing-Answer": "completeness",
    "Missing-Major-Auxiliary": "completeness",
    "Missing-Minor-Auxiliary": "completeness",
}
"""The type of an error, and the objective that its correction serves."""


def read_rated(row: Mapping[str, Any], source: Source, reading: Reading) -> list[Example]:
    """Answers with ratings by objective, one overall score, or ranks, 1 the best."""
    prompt = read_prompt(row)
    if prompt is None:
        raise RowError("the prompt is missing")
    key = next((name for name in LISTS if row.get(name) is not None), LISTS[0])
    answers = items(row, key, of=object)
    if any(isinstance(answer, str) for answer in answers):
        rated = list(zip(items(row, key, of=str), _scores_beside(row, len(answers)), strict=True))
    else:
        rated = [(_words(answer), _scores(answer)) for answer in items(row, key)]
    return [_ranking(prompt, rated, source, order_by=_order_by(rated, reading))]


def _words(answer: Mapping[str, Any]) -> str:
    key = next((name for name in _TEXTS if answer.get(name) is not None), _TEXTS[0])
    return text(answer, key)


def _scores(answer: Mapping[str, Any]) -> Scores:
    """The scores of one answer: its overall score or rank, and its annotations by objective."""
    scores: dict[str, float | None] = {}
    for name in _OVERALL:
        if answer.get(name) is not None and OVERALL not in scores:
            scores[OVERALL] = number(answer, name)
    if answer.get("rank") is not None:
        scores[PREFERENCE] = -number(answer, "rank")
    for name, judged in mapping(answer, "annotations", name="objective").items():
        rating = judged.get("Rating") if isinstance(judged, dict) else judged
        scores[name] = _rating(rating, name)
    return scores


def _rating(rating: Any, name: str) -> float | None:
    """A rating as number or digits; UltraFeedback writes "N/A" where there is none."""
    if rating is None or rating == "N/A":
        return None
    try:
        return number({name: float(rating) if isinstance(rating, str) else rating}, name)
    except ValueError as error:
        raise RowError(f"{name}: expected a rating, got {short(rating)}") from error


def _scores_beside(row: Mapping[str, Any], count: int) -> list[Scores]:
    """The scores of answers that are plain texts, from the list beside them."""
    key = next((name for name in LIST_SCORES if row.get(name) is not None), None)
    if key is None:
        raise RowError("several answers without scores or ranks have no order")
    values = items(row, key, of=object)
    if len(values) != count:
        raise RowError(f"{key}: expected {count} values, one an answer, got {len(values)}")
    name, sign = (PREFERENCE, -1) if key == "ranks" else (OVERALL, 1)
    return [{name: None if value is None else sign * number({key: value}, key)} for value in values]


def _order_by(rated: Sequence[tuple[str, Scores]], reading: Reading) -> str:
    names = list(dict.fromkeys(name for _, scores in rated for name in scores))
    if reading.order_by is not None:
        if reading.order_by not in names:
            raise RowError(f"order_by {reading.order_by!r} is not among its objectives {names}")
        return reading.order_by
    plain = [name for name in (OVERALL, PREFERENCE) if name in names]
    if not names:
        raise RowError("several answers without scores or ranks have no order")
    if not plain and len(names) > 1:
        raise RowError(f"several objectives and no overall score; give order_by one of {names}")
    return (plain or names)[0]


def _ranking(
    prompt: Dialogue, rated: Iterable[tuple[str, Scores]], source: Source, *, order_by: str
) -> Example:
    responses = tuple(Response(words, scores) for words, scores in rated)
    return Example(
        tuple(prompt.turns), responses, source, system_info=prompt.system_info, order_by=order_by
    )


def read_metaaligner(row: Mapping[str, Any], source: Source, reading: Reading) -> list[Example]:
    """A strong answer over a policy's weak one."""
    prompt = read_prompt({"query": text(row, "query")}) or Dialogue([])
    rated = [
        (text(row, "goldens"), {PREFERENCE: 1.0}),
        (text(row, "generated_text"), {PREFERENCE: 0.0}),
    ]
    return [_ranking(prompt, rated, source, order_by=PREFERENCE)]


def read_truthfulqa(row: Mapping[str, Any], source: Source, reading: Reading) -> list[Example]:
    """The best answer first, then what else is true, over what is not; each answer once."""
    true = [text(row, "Best Answer"), *_split(row, "Correct Answers")]
    rated: dict[str, tuple[str, Scores]] = {}
    for score, answers in ((1.0, true), (0.0, _split(row, "Incorrect Answers"))):
        for answer in answers:
            scores = {TRUTHFULNESS: score}
            kept = rated.setdefault(answer.casefold().rstrip("."), (answer, scores))
            if kept[1] != scores:
                raise RowError(f"the answer {short(answer)} is called both correct and incorrect")
    prompt = Dialogue([Turn("user", text(row, "Question"))])
    return [_ranking(prompt, rated.values(), source, order_by=TRUTHFULNESS)]


def _split(row: Mapping[str, Any], key: str) -> list[str]:
    return [answer.strip() for answer in text(row, key).split(";") if answer.strip()]


def read_fine_grained(row: Mapping[str, Any], source: Source, reading: Reading) -> list[Example]:
    """A ranking of four answers, and the first one's correction over it, by what was wrong."""
    titled = items(row, "passages", of=list, default=())
    passages = ["\n".join(text({"passages": line}, "passages") for line in each) for each in titled]
    prompt = Dialogue([Turn("user", "\n\n".join([*passages, text(row, "question")]))])
    answers = [text(row, key) for key in PREDICTIONS]
    ranked = zip(answers, _weak_order(row), strict=True)
    rated = [(answer, {PREFERENCE: score}) for answer, score in ranked]
    examples = [_ranking(prompt, rated, source, order_by=PREFERENCE)]
    feedback = mapping(row, "feedback", name="key")
    corrected = text(feedback, "corrected-prediction", "")
    if corrected.strip() and corrected != answers[0]:
        better = dict.fromkeys([PREFERENCE, *_mended(feedback)], 1.0)
        pair = [(corrected, better), (answers[0], dict.fromkeys(better, 0.0))]
        examples.append(_ranking(prompt, pair, source, order_by=PREFERENCE))
    return examples


def _mended(feedback: Mapping[str, Any]) -> list[str]:
    """The objectives that a correction serves."""
    errors = [
        text(error, "error type")
        for key in ("errors", "missing-info")
        for error in items(feedback, key, default=())
    ]
    unknown = sorted(set(errors) - set(_OBJECTIVES))
    if unknown:
        raise RowError(f"feedback: no objective is known for errors of type {unknown[0]!r}")
    return list(dict.fromkeys(_OBJECTIVES[error] for error in errors))


def _weak_order(row: Mapping[str, Any]) -> list[float]:
    """(4,) scores that reproduce the labels of all six pairs: how many answers each one beats."""
    labels = items(row, "preference", of=object)
    pairs = list(itertools.combinations(range(len(PREDICTIONS)), 2))
    if len(labels) != len(pairs) or any(label not in (0, 1, 2) for label in labels):
        raise RowError(f"preference: expected six labels of 0, 1 or 2, got {short(labels)}")
    sign = dict(zip(pairs, ({0: 0, 1: 1, 2: -1}[label] for label in labels), strict=True))
    beaten = [0.0] * len(PREDICTIONS)
    for (first, second), better in sign.items():
        beaten[first] += better > 0
        beaten[second] += better < 0
    for (first, second), better in sign.items():
        if (beaten[first] > beaten[second]) - (beaten[first] < beaten[second]) != better:
            raise RowError("intransitive: no ranking reproduces all six labels")
    return beaten
