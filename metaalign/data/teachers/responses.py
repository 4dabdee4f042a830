"""A teacher answers prompts that have no response, turn by turn."""

from collections.abc import Sequence
from dataclasses import replace

from metaalign.config.teacher import ResponsesConfig
from metaalign.data.sources.options import SourceOptions
from metaalign.data.teachers.replies import Ask, request_of, whole_answer
from metaalign.examples import Example, Response, Turn


async def respond(
    example: Example, config: ResponsesConfig, ask: Ask, options: SourceOptions
) -> list[Example]:
    """Answer every user turn that has no answer. Returns one example for each such turn.

    The prompt of a later turn contains the first answer to each earlier turn.
    """
    turns: list[Turn] = []
    answered: list[Example] = []
    for turn, following in zip(example.turns, [*example.turns[1:], None], strict=True):
        turns.append(turn)
        if turn.role == "assistant" or (following and following.role == "assistant"):
            continue
        texts = await _answers(replace(example, turns=tuple(turns)), config, ask, options.seed)
        responses = tuple(Response(text) for text in texts)
        answered.append(replace(example, turns=tuple(turns), responses=responses))
        turns.append(Turn("assistant", texts[0]))
    return answered if options.assistant_turns == "every" else answered[-1:]


async def _answers(example: Example, config: ResponsesConfig, ask: Ask, seed: int) -> Sequence[str]:
    """The distinct answers among `config.samples` samples for one prompt."""
    texts: dict[str, None] = {}
    for number in range(config.samples):
        asked = request_of(example, config, f"{seed}/respond/{number}")
        texts[whole_answer(await ask(config.teacher, asked))] = None
    return list(texts)
