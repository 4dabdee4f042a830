"""What a store gets of an example: answers, judgement, recipe, negative, in this order.

Everything a teacher is asked goes through one function, so that the pass that asks and the passes
that only look answers up make the same of the same example. Knows no network and no Ray.
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

_Made = TypeVar("_Made")


def in_recipe(example: Example, options: SourceOptions) -> list[Example]:
    """What a source's recipe makes of an example; itself where there is none.

    Raises:
        RowError: the recipe cannot use it.
    """
    if options.recipe is None:
        return [example]
    return (reformulate if options.recipe in SETS else put_under)(example, options)


async def made_of(example: Example, options: SourceOptions, ask: Ask) -> list[Example]:
    """What becomes of an example, all of it or nothing.

    Raises:
        RowError: its recipe cannot use it, or it is left without a negative that it needs.
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
    made = [one for each in examples for one in in_recipe(each, options)]
    if options.negatives is not None:
        made = [
            await with_negative(each, options.negatives, ask, seed=options.seed) for each in made
        ]
    for each in made:
        each.validate()
    return made


def looked_up(coroutine: Coroutine[Any, Any, _Made]) -> _Made:
    """The result of a coroutine whose `ask` never waits."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    raise AssertionError("a look-up waits for nothing")
