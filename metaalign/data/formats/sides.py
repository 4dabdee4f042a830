"""Reads a better and a worse answer under separate keys. One row of each format:

hh_rlhf     {"chosen": "\\n\\nHuman: Hi\\n\\nAssistant: Hello!", "rejected": "..."}
pairs       {"prompt": "Hi", "chosen": "Hello!", "rejected": "Go away."}, each a text, a message
            or a list of messages; without a prompt, chosen and rejected are whole conversations;
            {"instruction": "Hi", "chosen_response": "Hello!", "rejected_response": "Go away."},
            {"chosen_messages": [...], "rejected_messages": [...]} of LLaMA-Factory v1, or
            {"question": "Hi", "response_j": "Hello!", "response_k": "Go away."}

In stack_exchange_paired, response_j is the better answer,
https://huggingface.co/datasets/lvwerra/stack-exchange-paired.
"""

from collections.abc import Mapping
from typing import Any

from metaalign.data.formats.fields import number
from metaalign.data.formats.loss_flags import loss_weight
from metaalign.data.formats.markers import split_answer, without_end
from metaalign.data.formats.messages import (
    Dialogue,
    holds_turns,
    one_system,
    read_messages,
    same_turns,
    words,
)
from metaalign.data.formats.prompts import read_prompt, read_system, refuse_beside
from metaalign.data.formats.transcripts import is_transcript, read_transcript
from metaalign.data.sources.options import SourceOptions
from metaalign.errors import RowError
from metaalign.examples import PREFERENCE, Example, Response, Source

Keys = tuple[str, str]
"""The keys of the better and of the worse answer."""

SIDES: Keys = ("chosen", "rejected")
ALL_SIDES: tuple[Keys, ...] = (
    SIDES,
    ("chosen_messages", "rejected_messages"),
    ("chosen_response", "rejected_response"),
    ("response_j", "response_k"),
)
SIDE_KEYS = tuple(key for keys in ALL_SIDES for key in keys)

RATED_PAIRS = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
)
"""Keys of the ratings of a pair's two sides."""

RATING = "rating"
"""The objective of such ratings. They do not decide the order of a pair; `chosen` does."""


def sides_of(row: Mapping[str, Any]) -> Keys | None:
    """The keys of a row's better and worse answers; None if the row has no such pair."""
    if row.get("chosen") is not None or row.get("rejected") is not None:
        return SIDES
    return next((keys for keys in ALL_SIDES[1:] if row.get(keys[0]) is not None), None)


def read_pair(row: Mapping[str, Any], source: Source, options: SourceOptions) -> list[Example]:
    """A better and a worse answer, with a separate prompt or as whole conversations."""
    keys = sides_of(row) or SIDES
    prompt = read_prompt(row)
    if prompt is None:
        refuse_beside(row, keys[0])
        prompt = Dialogue([], read_system(row))
    return [pair_under(row, prompt, source, keys)]


def pair_under(
    row: Mapping[str, Any], prompt: Dialogue, source: Source, keys: Keys = SIDES
) -> Example:
    """The pair of a row under a prompt, which may have no turns.

    Raises:
        RowError: a side is no answer, or the turns before the two answers differ.
    """
    before, chosen, rejected = read_sides(row, prompt, keys)
    scores: list[dict[str, float | None]] = [{PREFERENCE: 1.0}, {PREFERENCE: 0.0}]
    for each, key in zip(scores, pair_ratings(row), strict=False):
        each[RATING] = number(row, key)
    return Example(
        tuple(before.turns),
        (Response(chosen, scores[0]), Response(rejected, scores[1])),
        source,
        system_info=before.system_info,
    )


def read_sides(row: Mapping[str, Any], prompt: Dialogue, keys: Keys) -> tuple[Dialogue, str, str]:
    """The turns before two answers, and the two answers.

    Raises:
        RowError: as in `pair_under`.
    """
    (before, first), (other, second) = (_side(row, key, prompt) for key in keys)
    if before.system_info != other.system_info or not same_turns(before.turns, other.turns):
        raise RowError(f"{keys[0]} and {keys[1]} differ before their last turn")
    if before.turns and not holds_turns(before.turns, prompt.turns):
        raise RowError(f"the prompt is not among the messages before the last of {keys[0]}")
    turns = before.turns or prompt.turns
    if turns and turns[-1].role == "assistant":
        raise RowError("two assistant turns follow each other")
    return Dialogue(turns, one_system(prompt.system_info, before.system_info)), first, second


def pair_ratings(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys of the ratings of a pair's two sides; empty if the row lacks one of them."""
    rated = (keys for keys in RATED_PAIRS if all(row.get(key) is not None for key in keys))
    found = next(rated, ())
    return found if found and is_pair(row) else ()


def is_pair(row: Mapping[str, Any]) -> bool:
    """Whether a row has a chosen or a rejected answer."""
    others = ("rejected_response", "rejected_output")
    return sides_of(row) is not None or any(row.get(key) is not None for key in others)


def _side(row: Mapping[str, Any], key: str, prompt: Dialogue) -> tuple[Dialogue, str]:
    """The turns before an answer, if the field repeats them, and the answer."""
    value = row.get(key)
    if isinstance(value, dict | list | tuple):
        return answer_in(value, key)
    answer = words(row, key)
    templated = split_answer(answer)
    if templated is not None:
        return split_last(templated, key)
    if is_transcript(answer) or not prompt.turns:
        return split_last(Dialogue(read_transcript(answer, key)), key)
    return Dialogue([]), without_end(answer) if prompt.is_templated else answer


def answer_in(
    value: Mapping[str, Any] | list[Any] | tuple[Any, ...], key: str
) -> tuple[Dialogue, str]:
    """The turns before the answer, and the answer, of one message or a list of messages.

    Args:
        key: Key of the messages in the row, for errors.

    Raises:
        RowError: they are no messages, or the last one is not the assistant's or is not trained.
    """
    messages = value if isinstance(value, list | tuple) else [value]
    said = read_messages({key: messages}, key)
    if messages and not loss_weight(messages[-1], key):
        raise RowError(f"{key}: the last answer has the weight 0; nothing to train")
    return split_last(said, key)


def split_last(said: Dialogue, key: str) -> tuple[Dialogue, str]:
    """Split a dialogue into the turns before the last one, and the last text.

    Raises:
        RowError: the last turn is not the assistant's.
    """
    if not said.turns or said.turns[-1].role != "assistant":
        raise RowError(f"{key}: the last turn is not the assistant's")
    return Dialogue(said.turns[:-1], said.system_info), said.turns[-1].text
