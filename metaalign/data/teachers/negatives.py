"""A teacher writes the response that is not preferred.

sampled        what it says under the same meta-prompt: MetaAlign's second stage, with the model
               of the first one as the teacher (https://arxiv.org/abs/2410.14184, section 4)
hidden         what it says when it cannot see the meta-prompt
hidden_tails   BDHS (https://arxiv.org/abs/2407.02477) in text: every sentence of the best
               response is cut, and ended by a teacher that cannot see the meta-prompt
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
    """The example with a negative, tagged so; without one where it can do without.

    Raises:
        AnswerError: the teacher gave no answer.
        RowError: there is no response to keep, or an example that needs a negative has none.
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
    """The first thing the teacher says that will do; None where nothing does."""
    same_again = config.temperature == 0 and config.way != "hidden_tails"
    known = {response.text for response in example.responses}
    for number in range(1 if same_again else config.tries):
        draw = f"{seed}/{config.way}/{number}"
        said, likeness = await _WAYS[config.way](example, best, config, ask, draw)
        obeys = are_obeyed(example.tags.get("wishes", ""), said)
        if said not in known and likeness < config.most_alike and not obeys:
            return said
    return None


_NO_WORSE = "negatives: all that the teacher said is as good as the best response, or too like it"
_NOTHING_HIDDEN = (
    "negatives: there is no meta-prompt to hide, or it changes nothing, so an answer without it is "
    "no worse; way=sampled asks under it"
)


def _is_hiding(example: Example) -> bool:
    """Whether an answer may be worse for what is hidden; whoever asks, a consensus is the same."""
    return _hidden(example) != example and example.tags.get("recipe") != "consensus"


def _hidden(example: Example) -> Example:
    """The example without its meta-prompt."""
    turns = tuple(replace(turn, user_info="") for turn in example.turns)
    return replace(example, system_info="", user_info="", turns=turns)


async def _sampled(
    example: Example, best: str, config: NegativesConfig, ask: Ask, draw: str
) -> tuple[str, float]:
    said = whole_answer(await ask(config.teacher, request_of(example, config, draw)))
    return said, likeness(best, said)


async def _told_nothing(
    example: Example, best: str, config: NegativesConfig, ask: Ask, draw: str
) -> tuple[str, float]:
    return await _sampled(_hidden(example), best, config, ask, draw)


async def _tails(
    example: Example, best: str, config: NegativesConfig, ask: Ask, draw: str
) -> tuple[str, float]:
    """The best response with other tails, and how much alike the tails are."""
    rng = Random(f"{draw}/{example.conversation}/{example.source.row}/{best}")
    hidden, said, tails = _hidden(example), "", ([], [])
    start = 0
    for sentence in _SENTENCE.findall(best):
        place = best.index(sentence, start)
        between, start = best[start:place], place + len(sentence)
        head = _cut(sentence, rng)
        asked = request_of(hidden, config, draw, (best[:place] + head).rstrip())
        tail = first_sentence(any_answer(await ask(config.teacher, asked), cut_off=True))
        said += between + head + tail
        tails[0].append(sentence[len(head) :])
        tails[1].append(tail)
    return said.strip() or best, likeness(" ".join(tails[0]), " ".join(tails[1]))


def _cut(sentence: str, rng: Random) -> str:
    """The sentence up to the end of a drawn word before its last one; nothing of one word."""
    ends = [found.end() for found in re.finditer(r"\S+", sentence)]
    return sentence[: rng.choice(ends[:-1])] if len(ends) > 1 else ""


def first_sentence(text: str) -> str:
    """A text up to the end of its first sentence or line."""
    found = _SENTENCE_END.search(text)
    return (text[: found.end()] if found else text).rstrip()


def likeness(first: str, second: str) -> float:
    """Similarity of two texts in words, 0 to 1: twice the words in common by all words."""
    return SequenceMatcher(None, first.split(), second.split(), autojunk=False).ratio()


_WAYS: dict[
    str, Callable[[Example, str, NegativesConfig, Ask, str], Awaitable[tuple[str, float]]]
] = {"sampled": _sampled, "hidden": _told_nothing, "hidden_tails": _tails}
