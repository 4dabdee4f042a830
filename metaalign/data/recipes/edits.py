"""MetaAligner's dynamic objectives reformulation: judged answers -> samples of an edit.

https://arxiv.org/abs/2403.17141, algorithm 1. Two answers to one query and, for every objective,
which is the better one become up to three samples, each an edit prompt and its target:

    contrastive   the worse answer, the objectives that the other is better at -> the other answer;
                  both directions of a pair, where each is better at something
    equal         the second answer, the objectives that both are equal at -> the first
    warm_up       of the equal samples a share, each with the answer itself as its target

Ratings, pairwise labels and typed errors alike are scores by objective. The objectives of a sample
are shuffled and never none; scores stay out of the prompt.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from random import Random

from metaalign.data.sources.options import SourceOptions
from metaalign.errors import RowError
from metaalign.examples import PREFERENCE, Example, Response, Turn
from metaalign.wire import Direction, description, edit_prompt, query_text


def reformulate(example: Example, options: SourceOptions) -> list[Example]:
    """The samples of the recipe's set that one example gives.

    They depend on the seed, the conversation and the row alone, and the equal set's are those that
    the warm-up set is taken from.

    Raises:
        RowError: it gives none.
    """
    rng = Random(f"{options.seed}/correction/{example.conversation}/{example.source.row}")
    found = [
        sample
        for first, second in combinations(example.responses, 2)
        for sample in SETS[str(options.recipe)](example, first, second, options, rng)
    ]
    if not found:
        raise RowError(f"no two answers give a sample of the set {options.recipe}")
    return found


def _contrastive(
    example: Example, first: Response, second: Response, options: SourceOptions, rng: Random
) -> Iterator[Example]:
    better, worse, _ = _compared(first, second, options)
    for objectives, source, target in ((better, second, first), (worse, first, second)):
        if objectives:
            yield _sample(example, source, target, objectives, "better", options, rng)


def _equal(
    example: Example, first: Response, second: Response, options: SourceOptions, rng: Random
) -> Iterator[Example]:
    *_, equal = _compared(first, second, options)
    if equal:
        yield _sample(example, second, first, equal, "equal", options, rng)


def _warm_up(
    example: Example, first: Response, second: Response, options: SourceOptions, rng: Random
) -> Iterator[Example]:
    *_, equal = _compared(first, second, options)
    if equal and rng.random() < options.warm_up_ratio:
        yield _sample(example, second, second, equal, "equal", options, rng)


SETS = {"warm_up": _warm_up, "equal": _equal, "contrastive": _contrastive}


def _compared(
    first: Response, second: Response, options: SourceOptions
) -> tuple[list[str], list[str], list[str]]:
    """The objectives, as prompts say them, that the first is better, worse and equal at."""
    better, worse, equal = [], [], []
    for name, own in first.scores.items():
        other, told = second.scores.get(name), _told(name, options)
        if own is None or other is None or told is None:
            continue
        (better if own > other else worse if own < other else equal).append(told)
    return better, worse, equal


def _told(name: str, options: SourceOptions) -> str | None:
    """An objective in words. A bare preference is none, unless the settings describe it."""
    given = dict(options.objectives)
    if name in given:
        return given[name]
    return None if name == PREFERENCE else description(name) or name


def _sample(
    example: Example,
    source: Response,
    target: Response,
    objectives: list[str],
    direction: Direction,
    options: SourceOptions,
    rng: Random,
) -> Example:
    rng.shuffle(objectives)
    prompt = edit_prompt(
        options.wire,
        query=query_text(example.turns),
        answer=source.text,
        objectives=objectives,
        direction=direction,
    )
    return replace(
        example,
        system_info="",
        user_info="",
        turns=(Turn("user", prompt),),
        responses=(Response(target.text, desirable=True),),
        order_by=PREFERENCE,
        tags={**example.tags, "recipe": str(options.recipe), "family": "correction"},
    )
