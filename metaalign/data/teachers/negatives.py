"""A teacher writes the response that is not preferred.

sampled        the teacher answers under the same meta-prompt: MetaAlign's second stage, with the
               first stage's model as the teacher (https://arxiv.org/abs/2410.14184, section 4)
hidden         the teacher answers without seeing the meta-prompt
hidden_tails   BDHS (https://arxiv.org/abs/2407.02477) in text: each sentence of the best response
               is cut, and a teacher that does not see the meta-prompt completes it
"""

import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from difflib import SequenceMatcher
from random import Random

from metaalign.config.teacher import NegativesConfig
from metaalign.data.teachers.replies import Ask, any_answer, request_of, whole_answer
from metaalign.errors import RowError
from metaalign.examples import PREFERENCE, Example, Response, best_response, ordered_pairs
from metaalign.preferences.wishes import are_obeyed

_SENTENCE = re.compile(r"\S[^\n]*?(?:[.!?]+(?=\s|$)|(?=\n)|$)")
_SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)|\n")


async def with_negative(
    example: Example, config: NegativesConfig, ask: Ask, *, seed: int
) -> Example:
    """Add a negative and a tag that says so. An ordered example may stay as it is without one.

    Raises:
        AnswerError: the teacher gave no answer.
        RowError: there is no response to keep, or an example needs a negative and gets none.
    """
    best = best_response(
        example.order_scores(), [response.desirable for response in example.responses]
    )
    if best is None:
        raise RowError("negatives: every response is undesirable")
    ordered = bool(ordered_pairs(example.order_scores()))
    why, negative = _NOTHING_HIDDEN, None
    if config.way == "sampled" or _is_hiding(example):
        why = _NO_WORSE
        negative = await _negative(example, example.responses[best].text, config, ask, seed)
    if negative is None and (config.replace or not ordered):
        raise RowError(why)
    if negative is None:
        return example
    tags = {**example.tags, "negative": config.way}
    if ordered and not config.replace:
        worst = min(score for score in example.order_scores() if score is not None)
        added = Response(negative, {example.order_by: worst})
        return replace(example, responses=(*example.responses, added), tags=tags)
    kept = Response(example.responses[best].text, {PREFERENCE: 1.0}, True)
    return replace(
        example,
        responses=(kept, Response(negative, {PREFERENCE: 0.0})),
        order_by=PREFERENCE,
        margin=0.0,
        tags=tags,
    )


async def _negative(
    example: Example, best: str, config: NegativesConfig, ask: Ask, seed: int
) -> str | None:
    """The teacher's first answer that is a usable negative; None if there is none."""
    same_again = config.temperature == 0 and config.way != "hidden_tails"
    known = {response.text for response in example.responses}
    for number in range(1 if same_again else config.tries):
        draw = f"{seed}/{config.way}/{number}"
        answer, likeness = await _WAYS[config.way](example, best, config, ask, draw)
        obeys = are_obeyed(example.tags.get("wishes", ""), answer)
        if answer not in known and likeness < config.most_alike and not obeys:
            return answer
    return None


_NO_WORSE = (
    "negatives: every answer of the teacher is as good as the best response or too similar to it"
)
_NOTHING_HIDDEN = (
    "negatives: there is no meta-prompt to hide, or it changes nothing, so an answer without it is "
    "no worse; set way=sampled to ask with the meta-prompt"
)


def _is_hiding(example: Example) -> bool:
    """Whether hiding the meta-prompt can make an answer worse. Never for the recipe consensus."""
    return _hidden(example) != example and example.tags.get("recipe") != "consensus"


def _hidden(example: Example) -> Example:
    """The example without its meta-prompt."""
    turns = tuple(replace(turn, user_info="") for turn in example.turns)
    return replace(example, system_info="", user_info="", turns=turns)


async def _sampled(
    example: Example, best: str, config: NegativesConfig, ask: Ask, draw: str
) -> tuple[str, float]:
    answer = whole_answer(await ask(config.teacher, request_of(example, config, draw)))
    return answer, likeness(best, answer)


async def _without_meta_prompt(
    example: Example, best: str, config: NegativesConfig, ask: Ask, draw: str
) -> tuple[str, float]:
    return await _sampled(_hidden(example), best, config, ask, draw)


async def _tails(
    example: Example, best: str, config: NegativesConfig, ask: Ask, draw: str
) -> tuple[str, float]:
    """The best response with new sentence tails, and how similar the old and new tails are."""
    rng = Random(f"{draw}/{example.conversation}/{example.source.row}/{best}")
    hidden, written, tails = _hidden(example), "", ([], [])
    start = 0
    for sentence in _SENTENCE.findall(best):
        place = best.index(sentence, start)
        between, start = best[start:place], place + len(sentence)
        head = _cut(sentence, rng)
        asked = request_of(hidden, config, draw, (best[:place] + head).rstrip())
        tail = first_sentence(any_answer(await ask(config.teacher, asked), cut_off=True))
        written += between + head + tail
        tails[0].append(sentence[len(head) :])
        tails[1].append(tail)
    return written.strip() or best, likeness(" ".join(tails[0]), " ".join(tails[1]))


def _cut(sentence: str, rng: Random) -> str:
    """The sentence up to a random word before its last one; empty if it has only one word."""
    ends = [found.end() for found in re.finditer(r"\S+", sentence)]
    return sentence[: rng.choice(ends[:-1])] if len(ends) > 1 else ""


def first_sentence(text: str) -> str:
    """A text up to the end of its first sentence or line."""
    found = _SENTENCE_END.search(text)
    return (text[: found.end()] if found else text).rstrip()


def likeness(first: str, second: str) -> float:
    """Similarity of two texts, 0 to 1: twice the number of common words over the number of all."""
    return SequenceMatcher(None, first.split(), second.split(), autojunk=False).ratio()


_WAYS: dict[
    str, Callable[[Example, str, NegativesConfig, Ask, str], Awaitable[tuple[str, float]]]
] = {"sampled": _sampled, "hidden": _without_meta_prompt, "hidden_tails": _tails}
