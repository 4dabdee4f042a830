"""Turns a request into a rendered prompt and sampling settings.

A `system` message is the System Info under its OpenAI name. `preferences` are phrased as sentences
and appended to the User Info. Imports no model, no Ray and no HTTP framework.
"""

from collections.abc import Sequence
from typing import NamedTuple

from metaalign.config import ServeConfig
from metaalign.errors import ConfigError
from metaalign.examples import Turn
from metaalign.generate.embedded import Sampling
from metaalign.preferences import FAMILIES, Preference
from metaalign.serve.bodies import ChatRequest, Message, PreferenceEntry
from metaalign.serve.refusals import refused
from metaalign.template import Segment, Template, prompt_segments


class Prompt(NamedTuple):
    """A rendered prompt: its tokens, and how many of them each tier takes."""

    tokens: list[int]
    counts: dict[str, int]
    head: list[int]
    """The last tokens of the prompt that already belong to the response; empty unless the request
    sets continue_final_message."""


def to_segments(request: ChatRequest) -> list[Segment]:
    """The segments of a request, in the order of the template.

    The last segment is the user's query, or the response to continue.

    Raises:
        RequestError: its argument is the Refusal.
    """
    system_info, messages = _split_system(request)
    turns = [_to_turn(number, message) for number, message in messages]
    for (number, message), (_, before) in zip(messages[1:], messages, strict=False):
        if message.role == before.role:
            raise refused(
                f"messages[{number}]", f"a second {message.role} message in a row; join the two"
            )
    if not turns or turns[0].role != "user":
        raise refused("messages", "must begin with a user message")
    last = "assistant" if request.continue_final_message else "user"
    if turns[-1].role != last:
        raise refused("messages", _END_WITH[last])
    wishes = [phrase_preference(number, entry) for number, entry in enumerate(request.preferences)]
    user_info = " ".join(text for text in (request.user_info, *wishes) if text)
    return prompt_segments(system_info=system_info, user_info=user_info, turns=turns)


_END_WITH = {
    "user": "must end with a user message; to continue an assistant message, set "
    "continue_final_message",
    "assistant": "must end with the assistant message that continue_final_message continues",
}


def _split_system(request: ChatRequest) -> tuple[str, list[tuple[int, Message]]]:
    numbered = list(enumerate(request.messages))
    system = [number for number, m in numbered if m.role in ("system", "developer")]
    if not system:
        return request.system_info or "", numbered
    if len(system) > 1:
        raise refused(f"messages[{system[1]}]", "a second system message; join it with the first")
    if system[0] != 0:
        raise refused(f"messages[{system[0]}]", "the system message must come first")
    if request.system_info is not None:
        raise refused(
            "system_info",
            "was given together with a system message; both set the same tier, give only one",
        )
    if request.messages[0].user_info:
        raise refused("messages[0].user_info", "only a user message may carry it")
    return request.messages[0].text, numbered[1:]


def _to_turn(number: int, message: Message) -> Turn:
    if not message.text.strip():
        raise refused(f"messages[{number}].content", "is empty")
    if message.role == "user":
        return Turn("user", message.text, message.user_info or "")
    if message.user_info:
        raise refused(f"messages[{number}].user_info", "only a user message may carry it")
    return Turn("assistant", message.text)


def phrase_preference(number: int, entry: PreferenceEntry) -> str:
    """The preference as a sentence of the user: the first phrasing of its family.

    Raises:
        RequestError: the family is unknown, its parameter is missing, or it takes no parameter.
    """
    if entry.family not in FAMILIES:
        known = f"unknown family {entry.family!r}; known: {', '.join(FAMILIES)}"
        raise refused(f"preferences[{number}].family", known)
    parameter = "" if entry.parameter is None else str(entry.parameter)
    try:
        return Preference(entry.family, parameter).phrasings("user_info")[0]
    except ConfigError as error:
        raise refused(f"preferences[{number}].parameter", str(error)) from error


def render(template: Template, segments: Sequence[Segment]) -> Prompt:
    """The tokens of a prompt. Each control token counts towards the tier that it opens.

    Args:
        segments: From `to_segments`.
    """
    counts: dict[str, int] = {}
    for segment, ids in zip(segments, template.segment_ids(segments), strict=True):
        counts[segment.tier] = counts.get(segment.tier, 0) + len(ids)
    if segments[-1].tier == "response":
        counts["response"] -= len(template.closing("response"))
        head = template.encode_texts([segments[-1].text])[0]
        return Prompt(template.continued_ids(segments), counts, head)
    counts["response"] = counts.get("response", 0) + 1
    return Prompt(template.prompt_ids(segments), counts, [])


def to_sampling(
    request: ChatRequest, prompt: Prompt, *, config: ServeConfig, context: int
) -> Sampling:
    """The sampling settings of a request, with defaults for the fields that it omits.

    Raises:
        RequestError: prompt and answer do not fit in the context. Tiers are never truncated.
    """
    room = context - len(prompt.tokens)
    if room < (request.most_tokens or 1):
        tiers = ", ".join(f"{tier} {count}" for tier, count in prompt.counts.items())
        message = (
            f"the prompt has {len(prompt.tokens)} tokens ({tiers}) and asks for "
            f"{request.most_tokens or 'at least 1'} more; the model's context is {context}. Tiers "
            "are never truncated: shorten one, or ask for fewer tokens"
        )
        raise refused("messages", message, code="context_length_exceeded")
    return Sampling(
        max_tokens=request.most_tokens or min(config.max_tokens, room),
        temperature=request.temperature or 0.0,
        top_p=1.0 if request.top_p is None else request.top_p,
        seed=request.seed,
    )
