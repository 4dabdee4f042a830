"""MetaAlign's four sub-datasets, written by rule over checkable preferences.

https://arxiv.org/abs/2410.14184, section 3: priority (System Info wins over User Info),
helpful-based (one criterion or two, safety-first against helpfulness-first), consensus (the
background does not change the answer) and diverse-opinion (the persona decides). Examples 2k and
2k + 1 have the same responses under opposed meta-prompts with flipped labels, so that a model must
read the meta-prompt. An example depends on (seed, its number) alone. Imports no tokenizer and no
Ray.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

from metaalign.config.prepare import RecipesConfig
from metaalign.errors import ConfigError
from metaalign.examples import HELD_OUT, PREFERENCE, TRAIN, Example, Response, Source, Turn
from metaalign.preferences import (
    FAMILIES,
    QUESTIONS,
    Preference,
    Question,
    compatible,
    write_answer,
)
from metaalign.preferences.backgrounds import ASSISTANTS, PEOPLE
from metaalign.preferences.wishes import wishes_tag

Preferences = tuple[Preference, ...]

BACKGROUNDS, IDENTITIES = PEOPLE[:8], ASSISTANTS[:3]
"""A subset small enough for a small model to learn to ignore."""

RECIPES = {"priority": 36, "helpful": 40, "consensus": 14, "opinion": 10}
"""The recipes, and how many of a hundred examples each writes."""

CELLS = {"against": 12, "agree": 2, "system": 2, "user": 2, "silent": 1}
"""Cells of the priority matrix and their weights. Each is written for P and for not-P."""

EMPHASIS = {"capitals": 3, "lowercase": 2, "ending": 2}
"""Weights of families that are drawn more often, since small models learn them last."""


def count_examples(config: RecipesConfig) -> int:
    """Number of examples of both splits: training examples, then one held-out example a case."""
    return config.examples + config.cases


def write_examples(
    config: RecipesConfig, *, seed: int, start: int, stop: int, closed: Sequence[str] = ()
) -> list[Example]:
    """Examples number `start` to `stop` - 1.

    Examples from number `config.examples` on are held out: they combine a preference family only
    with questions that training never combines it with.

    Args:
        closed: Families that training never uses, nor their opposites.

    Raises:
        ConfigError: a recipe has no family left, or a split has no question left.
    """
    axes = frozenset(axis(family) for family in closed if family in FAMILIES)
    if axes == frozenset(map(axis, FAMILIES)):
        raise ConfigError(_NOTHING_OPEN)
    return [
        _example(config, seed=seed, number=number, closed=axes) for number in range(start, stop)
    ]


def axis(family: str) -> str:
    """The name that a family shares with its declared opposite."""
    return min(family, FAMILIES[family].opposite or family)


def is_held_out(question: Question, family: str, *, seed: int, ratio: float) -> bool:
    """Whether training never uses this question with this family, nor with its opposite.

    Of two questions that ask for each other's words at most one is held out, so that training
    uses every word in every spelling.
    """
    couple = question.couple or question.id
    draw = _draw(f"{seed}/{couple}/{question.language}/{axis(family)}")
    if question.couple and question.subject > question.answer:
        draw = 1.0 - draw
    return draw < ratio


@functools.cache
def questions_for(family: str) -> tuple[Question, ...]:
    """The questions that can be combined with a preference of this family."""
    return tuple(
        question
        for question in QUESTIONS.values()
        if question.kind in FAMILIES[family].kinds
        and (question.language == "English" or FAMILIES[family].slot in ("language", "case"))
    )


@functools.cache
def split_questions(
    family: str, *, seed: int, ratio: float, held_out: bool
) -> tuple[Question, ...]:
    """The questions that this family is combined with in one of the splits."""
    return tuple(
        question
        for question in questions_for(family)
        if is_held_out(question, family, seed=seed, ratio=ratio) == held_out
    )


def draw_preference(family: str, question: Question, rng: Random) -> Preference:
    """A preference of the family with a random parameter that training uses."""
    parameters = list(FAMILIES[family].seen_parameters)

    if family == "stance":
        parameters = [question.subject, question.answer]
    return Preference(family, rng.choice(parameters))


def draw_partner(
    preference: Preference, question: Question, rng: Random, allowed: Callable[[str], bool]
) -> Preference | None:
    """A second preference that one answer can obey together with the first; None if none can."""
    partners = [
        family
        for family in FAMILIES
        if question.kind in FAMILIES[family].kinds
        and compatible(preference, Preference(family, FAMILIES[family].parameters[0]))
        and allowed(family)
    ]
    if not partners:
        return None
    return draw_preference(rng.choice(partners), question, rng)


def _draw(key: str) -> float:
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


class _Draft(NamedTuple):
    """An example before its preferences are put into words."""

    question: Question
    system: Preferences | str
    user: Preferences | str
    chosen: Preferences
    rejected: Preferences
    family: str
    conflict: str = ""


_NOTHING_OPEN = "held_out_families leaves a recipe no family for training; remove some of them"

QuestionsOf = Callable[[str], Sequence[Question]]
"""Returns the questions of the split that a family is combined with."""


def _example(config: RecipesConfig, *, seed: int, number: int, closed: frozenset[str]) -> Example:
    rng = Random(f"{seed}/example/{number // 2}")
    held_out = number >= config.examples
    recipe = rng.choices(list(RECIPES), weights=list(RECIPES.values()))[0]
    if held_out and recipe == "consensus":
        recipe = "helpful"
    draft = {
        "priority": _priority,
        "helpful": functools.partial(_helpful, doubles=config.max_preferences > 1),
        "consensus": _consensus,
        "opinion": _opinion,
    }[recipe]

    questions_of = functools.partial(
        _questions_in_split, config=config, seed=seed, held_out=held_out, closed=closed
    )
    drawn = draft(rng, questions_of, flipped=bool(number % 2))
    voice = Random(f"{seed}/voice/{number}")
    query = Random(f"{seed}/query/{number // 2}").choice(drawn.question.phrasings)
    return Example(
        system_info=say(drawn.system, "system_info", voice),
        user_info=say(drawn.user, "user_info", voice),
        turns=(Turn("user", query),),
        responses=(
            Response(write_answer(drawn.question, drawn.chosen), {PREFERENCE: 1.0}, True),
            Response(write_answer(drawn.question, drawn.rejected), {PREFERENCE: 0.0}),
        ),
        source=Source(file="recipes", row=number),
        tags={
            "recipe": recipe,
            "family": drawn.family,
            "conflict": drawn.conflict,
            **_tag_if_set("wishes", wishes_tag(drawn.chosen)),
            **_tag_if_set("unseen", _unseen(drawn, closed) if held_out else ""),
            "split": HELD_OUT if held_out else TRAIN,
        },
        conversation=f"recipes/{number // 2}",
    )


def _tag_if_set(name: str, tag: str) -> dict[str, str]:
    """The tag, or nothing if its text is empty."""
    return {name: tag} if tag else {}


def _unseen(drawn: _Draft, closed: frozenset[str]) -> str:
    """Which parts of a held-out example training never uses."""
    families = {drawn.family, *(wish.family for wish in drawn.chosen)}
    is_closed = any(axis(name) in closed for name in families if name in FAMILIES)
    return "family query" if is_closed else "query"


def _questions_in_split(
    family: str, *, config: RecipesConfig, seed: int, held_out: bool, closed: frozenset[str]
) -> tuple[Question, ...]:
    """The questions that a family is combined with in a split; none if training must not use it."""
    if not held_out and axis(family) in closed:
        return ()
    questions = split_questions(family, seed=seed, ratio=config.held_out_ratio, held_out=held_out)
    if not questions:
        raise ConfigError(
            f"recipes.held_out_ratio leaves one split without a question for the family {family!r}"
        )
    return questions


def say(wishes: Sequence[Preference] | str, tier: str, rng: Random) -> str:
    """The text of one tier: preferences in the tier's wording, or a given text unchanged."""
    if isinstance(wishes, str):
        return wishes
    return " ".join(preference.say(tier, rng) for preference in wishes)


def _draw_wish(
    families: Sequence[str], rng: Random, questions_of: QuestionsOf
) -> tuple[Question, Preference]:
    families = [family for family in families if questions_of(family)]
    if not families:
        raise ConfigError(_NOTHING_OPEN)
    weights = [EMPHASIS.get(family, 1) for family in families]
    family = rng.choices(families, weights=weights)[0]
    question = rng.choice(questions_of(family))
    return question, draw_preference(family, question, rng)


def _priority(rng: Random, questions_of: QuestionsOf, *, flipped: bool) -> _Draft:
    """One cell of the matrix {system says P, says not-P, is silent} x {user the same}."""
    question, first = _draw_wish(list(FAMILIES), rng, questions_of)
    second = rng.choice(first.opposites(question))
    if flipped:
        first, second = second, first
    cell = rng.choices(list(CELLS), weights=list(CELLS.values()))[0]
    unasked = first if write_answer(question, ()) != write_answer(question, (first,)) else second
    return _Draft(
        question,
        system=() if cell in ("user", "silent") else (first,),
        user={"against": (second,), "agree": (first,), "user": (first,)}.get(cell, ()),
        chosen=() if cell == "silent" else (first,),
        rejected=(unasked,) if cell == "silent" else (second,),
        family=first.family,
        conflict=cell,
    )


def _helpful(rng: Random, questions_of: QuestionsOf, *, flipped: bool, doubles: bool) -> _Draft:
    """One criterion or two, stated in one tier or one in each."""
    families = [name for name, family in FAMILIES.items() if family.kinds != ("opinion",)]
    question, first = _draw_wish(families, rng, questions_of)
    second = rng.choice(first.opposites(question))
    both: Preferences = ()
    if doubles and rng.random() < 0.6:
        partner = draw_partner(first, question, rng, lambda name: question in questions_of(name))
        both = (partner,) if partner and compatible(second, partner) else ()
    if flipped:
        first, second = second, first
    wishes, rejected = (first, *both), (second, *both)
    if both and rng.random() < 0.3:
        half = (rng.choice(wishes),)
        if write_answer(question, half) != write_answer(question, wishes):
            rejected = half
    spoken = list(wishes)
    rng.shuffle(spoken)
    cut = rng.choice((0, 0, 1)) if both else rng.choice((0, 0, 0, 1))
    identity = rng.choice(IDENTITIES) if rng.random() < 0.2 else ""
    return _Draft(
        question,
        system=tuple(spoken[:cut]) or identity,
        user=tuple(spoken[cut:]),
        chosen=wishes,
        rejected=rejected,
        family=first.family,
    )


def _consensus(rng: Random, questions_of: QuestionsOf, *, flipped: bool) -> _Draft:
    """The plain answer, whatever the user's background, against an answer in an unwanted style."""
    families: list[str] = []
    while not families:
        kind = rng.choices(("fact", "risk", "opinion"), weights=(4, 4, 2))[0]
        question = rng.choice([known for known in QUESTIONS.values() if known.kind == kind])
        families = [name for name in FAMILIES if question in questions_of(name)]
    unasked = draw_preference(rng.choice(families), question, rng)
    if write_answer(question, (unasked,)) == write_answer(question, ()):
        unasked = rng.choice(unasked.opposites(question))
    return _Draft(
        question,
        system=rng.choice(IDENTITIES) if rng.random() < 0.3 else "",
        user=rng.choice(BACKGROUNDS) if flipped or rng.random() < 0.3 else "",
        chosen=(),
        rejected=(unasked,),
        family="none",
    )


def _opinion(rng: Random, questions_of: QuestionsOf, *, flipped: bool) -> _Draft:
    """The persona's side against the other one."""
    question, first = _draw_wish(["stance"], rng, questions_of)
    (second,) = first.opposites(question)
    if flipped:
        first, second = second, first
    by_system = rng.random() < 0.2
    return _Draft(
        question,
        system=(first,) if by_system else "",
        user=rng.choice(BACKGROUNDS) if by_system else (first,),
        chosen=(first,),
        rejected=(second,),
        family="stance",
    )
