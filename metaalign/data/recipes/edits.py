"""MetaAligner's dynamic objectives reformulation: judged answers -> samples of an edit.

https://arxiv.org/abs/2403.17141, algorithm 1. The input is two answers to one query and, for each
objective, which of them is better. They give up to three samples, each an edit prompt and its
target:

    contrastive   one answer and the objectives at which the other is better -> the other answer;
                  in both directions if each answer is better at some objective
    equal         the second answer and the objectives at which both are equal -> the first answer
    warm_up       a share of the equal samples, with the answer itself as the target

Ratings, pairwise labels and typed errors all are scores by objective. A sample has one or more
objectives in random order. The prompt contains no scores.
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
    """The samples that one example gives to the set of the recipe (one of `SETS`).

    They depend on the seed, the conversation and the row alone. The warm-up set is drawn from the
    samples of the equal set.

    Raises:
        RowError: the example gives no sample.
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
    """The objectives, as worded in prompts, at which the first is better, worse and equal."""
    better, worse, equal = [], [], []
    for name, own in first.scores.items():
        other, text = second.scores.get(name), _objective_text(name, options)
        if own is None or other is None or text is None:
            continue
        (better if own > other else worse if own < other else equal).append(text)
    return better, worse, equal


def _objective_text(name: str, options: SourceOptions) -> str | None:
    """Description of an objective; None for a plain preference that the settings do not name."""
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
