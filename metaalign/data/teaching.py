"""What a store gets of an example: answers, judgement, recipe, negative, in this order.

Everything a teacher is asked goes through one function, so that the pass that asks and the passes
that only look answers up make the same of the same example. Knows no network and no Ray.
"""

from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from metaalign.config.teacher import ResponsesConfig
from metaalign.data.judging import judge
from metaalign.data.meta_prompts import put_under
from metaalign.data.negatives import with_negative
from metaalign.data.objectives import SETS, reformulate
from metaalign.data.reading import Reading
from metaalign.data.replies import Ask, request_of, whole_answer
from metaalign.examples import Example, Response, Turn

_Made = TypeVar("_Made")


def in_recipe(example: Example, reading: Reading) -> list[Example]:
    """What a source's recipe makes of an example; itself where there is none.

    Raises:
        RowError: the recipe cannot use it.
    """
    if reading.recipe is None:
        return [example]
    return (reformulate if reading.recipe in SETS else put_under)(example, reading)


async def made_of(example: Example, reading: Reading, ask: Ask) -> list[Example]:
    """What becomes of an example, all of it or nothing.

    Raises:
        RowError: its recipe cannot use it, or it is left without a negative that it needs.
        AnswerError: a teacher gave no answer.
    """
    examples = [example]
    if reading.responses is not None and not example.responses:
        examples = await respond(example, reading.responses, ask, reading)
    if reading.judgement is not None:
        judgement, order_by = reading.judgement, reading.judged_by
        examples = [
            await judge(each, judgement, ask, seed=reading.seed, order_by=order_by)
            for each in examples
        ]
    made = [one for each in examples for one in in_recipe(each, reading)]
    if reading.negatives is not None:
        made = [
            await with_negative(each, reading.negatives, ask, seed=reading.seed) for each in made
        ]
    for each in made:
        each.validate()
    return made


async def respond(
    example: Example, config: ResponsesConfig, ask: Ask, reading: Reading
) -> list[Example]:
    """A prompt with answers to every user's turn that has none, one example a turn.

    A later turn is asked with the first answer to the earlier ones before it.
    """
    said: list[Turn] = []
    answered: list[Example] = []
    for turn, following in zip(example.turns, [*example.turns[1:], None], strict=True):
        said.append(turn)
        if turn.role == "assistant" or (following and following.role == "assistant"):
            continue
        texts = await _answers(replace(example, turns=tuple(said)), config, ask, reading.seed)
        responses = tuple(Response(text) for text in texts)
        answered.append(replace(example, turns=tuple(said), responses=responses))
        said.append(Turn("assistant", texts[0]))
    return answered if reading.assistant_turns == "every" else answered[-1:]


async def _answers(example: Example, config: ResponsesConfig, ask: Ask, seed: int) -> Sequence[str]:
    """Different answers to one prompt, as many as there are among the samples."""
    texts: dict[str, None] = {}
    for number in range(config.samples):
        asked = request_of(example, config, f"{seed}/respond/{number}")
        texts[whole_answer(await ask(config.teacher, asked))] = None
    return list(texts)


def looked_up(coroutine: Coroutine[Any, Any, _Made]) -> _Made:
    """The result of a coroutine whose `ask` never waits."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    raise AssertionError("a look-up waits for nothing")
