"""Applies a source's answers, judgement, recipe and negatives to an example, in this order.

All requests to teachers go through one function, so the pass that sends them and the passes that
only look answers up give the same result for an example. Imports neither a network client nor Ray.
"""

from collections.abc import Coroutine
from typing import Any, TypeVar

from metaalign.data.recipes.edits import SETS, reformulate
from metaalign.data.recipes.meta_prompts import put_under
from metaalign.data.sources.options import SourceOptions
from metaalign.data.teachers.judging import judge
from metaalign.data.teachers.negatives import with_negative
from metaalign.data.teachers.replies import Ask
from metaalign.data.teachers.responses import respond
from metaalign.examples import Example

_Result = TypeVar("_Result")


def apply_recipe(example: Example, options: SourceOptions) -> list[Example]:
    """Apply the source's recipe to an example. Without a recipe, returns the example alone.

    Raises:
        RowError: the recipe cannot use the example.
    """
    if options.recipe is None:
        return [example]
    return (reformulate if options.recipe in SETS else put_under)(example, options)


async def enrich(example: Example, options: SourceOptions, ask: Ask) -> list[Example]:
    """Apply the source's answers, judgement, recipe and negatives to one example.

    Returns:
        All examples that result; none if a step fails.

    Raises:
        RowError: the recipe cannot use the example, or it needs a negative and gets none.
        AnswerError: a teacher gave no answer.
    """
    examples = [example]
    if options.responses is not None and not example.responses:
        examples = await respond(example, options.responses, ask, options)
    if options.judgement is not None:
        judgement, order_by = options.judgement, options.judged_by
        examples = [
            await judge(each, judgement, ask, seed=options.seed, order_by=order_by)
            for each in examples
        ]
    made = [one for each in examples for one in apply_recipe(each, options)]
    if options.negatives is not None:
        made = [
            await with_negative(each, options.negatives, ask, seed=options.seed) for each in made
        ]
    for each in made:
        each.validate()
    return made


def run_without_waiting(coroutine: Coroutine[Any, Any, _Result]) -> _Result:
    """Run a coroutine whose `ask` never waits, without an event loop, and return its result."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    raise AssertionError("a look-up must not wait")
