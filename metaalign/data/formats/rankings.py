"""Reads several judged answers to one prompt. One row of each format:

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

`preference` has the pairs 1v2, 1v3, 1v4, 2v3, 2v4 and 3v4: 1 or 2 for the better side, 0 for a tie.
https://arxiv.org/abs/2306.01693
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from metaalign.data.formats.fields import (
    as_number,
    is_filled,
    items,
    mapping,
    number,
    one_of,
    short,
    text,
)
from metaalign.data.formats.messages import Dialogue
from metaalign.data.formats.prompts import read_prompt
from metaalign.data.sources.options import SourceOptions, judged_objectives
from metaalign.errors import RowError
from metaalign.examples import PREFERENCE, Example, Response, Source, Turn

Scores = Mapping[str, float | None]

LISTS = ("completions", "responses", "answers", "generations")
"""Keys of several answers."""

_TEXTS = ("response", "text", "content", "answer", "completion")
_OVERALL = ("fine-grained_score", "overall_score", "score", "rating", "reward")
"""Keys of an overall score. UltraFeedback's overall_score has errors, so its other one is first."""
_UNRATED = (None, "N/A")
_NO_ORDER = "several answers without scores or ranks have no order"
LIST_SCORES = ("scores", "ratings", "rewards", "ranks")
"""Keys of the scores of answers that are plain texts."""
OVERALL = "overall"
"""The objective of a score without a name."""
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
"""Type of an error -> the objective that its correction improves."""


def read_rated(row: Mapping[str, Any], source: Source, options: SourceOptions) -> list[Example]:
    """Answers with ratings by objective, one overall score, or ranks; rank 1 is the best."""
    prompt = read_prompt(row)
    if prompt is None:
        raise RowError("the prompt is missing")
    rated: dict[str, Scores] = {}
    for said, scores in zip(*_answers(row), strict=True):
        if rated.setdefault(said, scores) != scores:
            raise RowError(f"the answer {short(said)} occurs twice with different scores")
    order_by = _order_by(rated.values(), options)
    return [_ranking(prompt, rated.items(), source, order_by=order_by)]


def _answers(row: Mapping[str, Any]) -> tuple[list[str], list[Scores]]:
    """The texts of all answers, and the scores of each."""
    key = one_of(row, LISTS, "answers")
    answers = items(row, key, of=object)
    if any(isinstance(answer, str) for answer in answers):
        return [*items(row, key, of=str)], _scores_beside(row, len(answers))
    texts = [_words(answer) for answer in items(row, key)]
    overall = _overall_key(answers)
    scores = [_scores(answer, overall) for answer in answers]
    beside = one_of(row, LIST_SCORES, "scores")
    if not is_filled(row.get(beside)):
        return texts, scores
    if any(scores):
        raise RowError(f"{beside} and the answers themselves both hold scores; keep one of them")
    return texts, _scores_beside(row, len(answers))


def _words(answer: Mapping[str, Any]) -> str:
    return text(answer, one_of(answer, _TEXTS, "an answer"))


def _overall_key(answers: Sequence[Mapping[str, Any]]) -> str | None:
    """The one key of the overall score for all answers, since different scores are not comparable.

    The first key that every rated answer has; if there is none, the first that any answer has.
    None if no answer has an overall score.
    """
    having = [{name for name in _OVERALL if answer.get(name) not in _UNRATED} for answer in answers]
    rated = [names for names in having if names]
    wanted = (rated and set.intersection(*rated)) or set().union(*rated)
    return next((name for name in _OVERALL if name in wanted), None)


def _scores(answer: Mapping[str, Any], overall: str | None) -> Scores:
    """The scores of one answer: its overall score or rank, and its annotations by objective."""
    scores: dict[str, float | None] = {}
    if overall is not None:
        scores[OVERALL] = _rating(answer.get(overall), overall)
    if answer.get("rank") is not None:
        scores[PREFERENCE] = -number(answer, "rank")
    for name, judged in mapping(answer, "annotations", name="objective").items():
        if judged is not None:
            rating = judged.get("Rating") if isinstance(judged, dict) else judged
            scores[name] = _rating(rating, name)
    return scores


def _rating(rating: Any, name: str) -> float | None:
    """A rating; None if it is missing, which UltraFeedback writes as "N/A"."""
    return None if rating in _UNRATED else as_number(rating, name)


def _scores_beside(row: Mapping[str, Any], count: int) -> list[Scores]:
    """The scores of the answers, from the list beside them."""
    key = one_of(row, LIST_SCORES, "scores")
    if row.get(key) is None:
        raise RowError(_NO_ORDER)
    values = items(row, key, of=object)
    if len(values) != count:
        raise RowError(f"{key}: expected {count} values, one an answer, got {len(values)}")
    name, sign = (PREFERENCE, -1) if key == "ranks" else (OVERALL, 1)
    found = [_rating(value, key) for value in values]
    return [{name: None if value is None else sign * value} for value in found]


def _order_by(rated: Iterable[Scores], options: SourceOptions) -> str:
    names = judged_objectives(rated)
    if not names:
        raise RowError(_NO_ORDER)
    if options.order_by is not None:
        return options.order_by
    plain = [name for name in (OVERALL, PREFERENCE) if name in names]
    if not plain and len(names) > 1 and options.judgement is None:
        raise RowError(f"several objectives and no overall score; give order_by one of {names}")
    return (plain or names)[0]


def _ranking(
    prompt: Dialogue, rated: Iterable[tuple[str, Scores]], source: Source, *, order_by: str
) -> Example:
    responses = tuple(Response(words, scores) for words, scores in rated)
    return Example(
        tuple(prompt.turns), responses, source, system_info=prompt.system_info, order_by=order_by
    )


def read_metaaligner(
    row: Mapping[str, Any], source: Source, options: SourceOptions
) -> list[Example]:
    """A strong answer, preferred over a policy's weak one."""
    prompt = read_prompt({"query": text(row, "query")}) or Dialogue([])
    rated = [
        (text(row, "goldens"), {PREFERENCE: 1.0}),
        (text(row, "generated_text"), {PREFERENCE: 0.0}),
    ]
    return [_ranking(prompt, rated, source, order_by=PREFERENCE)]


def read_truthfulqa(
    row: Mapping[str, Any], source: Source, options: SourceOptions
) -> list[Example]:
    """The best and the other correct answers, preferred over incorrect ones; each answer once."""
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


def read_fine_grained(
    row: Mapping[str, Any], source: Source, options: SourceOptions
) -> list[Example]:
    """A ranking of four answers, and a pair of the first answer and its correction.

    The correction is better at the objectives of the errors, and equal at all others.
    """
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
        better = dict.fromkeys([PREFERENCE, *_OBJECTIVES.values()], 1.0)
        worse = {**better, **dict.fromkeys([PREFERENCE, *_corrected_objectives(feedback)], 0.0)}
        pair = [(corrected, better), (answers[0], worse)]
        examples.append(_ranking(prompt, pair, source, order_by=PREFERENCE))
    return examples


def _corrected_objectives(feedback: Mapping[str, Any]) -> list[str]:
    """The objectives that a correction improves."""
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
    """(4,) number of answers that each answer beats; checked to reproduce all six labels."""
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
