"""Conversations, pairs and single answers, as most data sets hold them. One row of each:

messages    {"messages": [{"role": "user", "content": "Hi"},
                          {"role": "assistant", "content": "Hello!"}], "label": true}
sharegpt    {"conversations": [{"from": "human", "value": "Hi"}],
             "chosen": {"from": "gpt", "value": "Hello!"}, "rejected": {...}}
hh_rlhf     {"chosen": "\\n\\nHuman: Hi\\n\\nAssistant: Hello!", "rejected": "..."}
pairs       {"prompt": "Hi", "chosen": "Hello!", "rejected": "Go away."}, each a text, a message
            or a list of messages; without a prompt, chosen and rejected are whole conversations
alpaca      {"instruction": "Translate.", "input": "hola", "output": "hello"}
completion  {"prompt": "Capital of Peru?", "completion": "Lima.", "label": true}
prompts     {"prompt": "Capital of Peru?"} or {"turns": ["Capital of Peru?", "And of Chile?"]}
"""

from collections.abc import Mapping, Sequence
from typing import Any

from metaalign.data.formats.fields import items, label, number, short, text
from metaalign.data.formats.prompts import (
    Dialogue,
    is_transcript,
    read_message,
    read_messages,
    read_prompt,
    read_transcript,
    same_turns,
)
from metaalign.data.reading import Reading
from metaalign.errors import RowError
from metaalign.examples import PREFERENCE, Example, Response, Source, Turn

ANSWER_KEYS = ("output", "completion", "response", "answer")
"""Where a single answer stands."""

RATED_PAIRS = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
)
"""Where the ratings of a pair's two sides stand."""

RATING = "rating"
"""The objective of such ratings. The order of a pair is what `chosen` says."""

HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
"""Objectives by which HelpSteer rates an answer."""


def read_sharegpt(row: Mapping[str, Any], source: Source, reading: Reading) -> list[Example]:
    """`conversations`, with a pair, a label or neither."""
    return _read_conversation(row, "conversations", source, reading)


def read_chat(row: Mapping[str, Any], source: Source, reading: Reading) -> list[Example]:
    """`messages` or `conversation`, with a pair, a label or neither."""
    key = "messages" if row.get("messages") is not None else "conversation"
    return _read_conversation(row, key, source, reading)


def _read_conversation(
    row: Mapping[str, Any], key: str, source: Source, reading: Reading
) -> list[Example]:
    said = read_messages(row, key)
    said = Dialogue(said.turns, said.system_info or text(row, "system", ""))
    if row.get("chosen") is not None or row.get("rejected") is not None:
        return [_pair(row, said, source)]
    if not said.turns or said.turns[-1].role != "assistant":
        raise RowError(f"{key}: the last message is not the assistant's; nothing to train")
    good = label(row)
    answers = _answers(row, key, said.turns)
    if good is not None or reading.assistant_turns == "last":
        answers = answers[-1:]
    if not answers:
        raise RowError(f"{key}: every answer has the weight 0; nothing to train")
    return [
        Example(
            tuple(said.turns[:place]),
            (Response(said.turns[place].text, desirable=good),),
            source,
            system_info=said.system_info,
        )
        for place in answers
    ]


def _answers(row: Mapping[str, Any], key: str, turns: Sequence[Turn]) -> list[int]:
    """Places of the assistant's turns; OpenAI's weight 0 leaves one out of training."""
    weights = [number(message, "weight", 1.0) for message in items(row, key)][-len(turns) :]
    return [
        place
        for place, (turn, weight) in enumerate(zip(turns, weights, strict=True))
        if turn.role == "assistant" and weight > 0
    ]


def read_pair(row: Mapping[str, Any], source: Source, reading: Reading) -> list[Example]:
    """`chosen` and `rejected`, below a prompt of their own or as whole conversations."""
    return [_pair(row, read_prompt(row), source)]


def _pair(row: Mapping[str, Any], prompt: Dialogue | None, source: Source) -> Example:
    (before, chosen), (other, rejected) = (
        _side(row, key, prompted=prompt is not None) for key in ("chosen", "rejected")
    )
    if before.system_info != other.system_info or not same_turns(before.turns, other.turns):
        raise RowError("chosen and rejected differ before their last turn")
    if prompt is None:
        prompt = before
    elif before.turns:
        prompt = _repeated(prompt, before)
    scores: list[dict[str, float | None]] = [{PREFERENCE: 1.0}, {PREFERENCE: 0.0}]
    for keys in RATED_PAIRS:
        if all(row.get(key) is not None for key in keys):
            for each, key in zip(scores, keys, strict=True):
                each[RATING] = number(row, key)
    return Example(
        tuple(prompt.turns),
        (Response(chosen, scores[0]), Response(rejected, scores[1])),
        source,
        system_info=prompt.system_info,
    )


def _repeated(prompt: Dialogue, before: Dialogue) -> Dialogue:
    """The conversation before the answer, which must hold the prompt that the row gives, too."""
    asked = {turn.text.strip() for turn in before.turns}
    if any(turn.text.strip() not in asked for turn in prompt.turns):
        raise RowError("the prompt is not among the messages before the last of chosen")
    return Dialogue(before.turns, before.system_info or prompt.system_info)


def _side(row: Mapping[str, Any], key: str, *, prompted: bool) -> tuple[Dialogue, str]:
    """What was said before an answer, as far as the field repeats it, and the answer."""
    value = row.get(key)
    if isinstance(value, str) and (is_transcript(value) or not prompted):
        return _split(Dialogue(read_transcript(text(row, key), key)), key)
    if isinstance(value, dict):
        role, words = read_message(value, key)
        return _split(Dialogue([Turn(role, words)]), key)  # pyright: ignore[reportArgumentType]
    if isinstance(value, list | tuple):
        return _split(read_messages(row, key), key)
    return Dialogue([]), text(row, key)


def _split(said: Dialogue, key: str) -> tuple[Dialogue, str]:
    if not said.turns or said.turns[-1].role != "assistant":
        raise RowError(f"{key}: the last turn is not the assistant's")
    return Dialogue(said.turns[:-1], said.system_info), said.turns[-1].text


def read_answer(row: Mapping[str, Any], source: Source, reading: Reading) -> list[Example]:
    """A prompt and one answer, with a label or without."""
    prompt = read_prompt(row)
    if prompt is None:
        raise RowError("the prompt is missing")
    key = next((name for name in ANSWER_KEYS if row.get(name) is not None), ANSWER_KEYS[0])
    if isinstance(row.get(key), list):
        before, words = _split(read_messages(row, key), key)
        if before.turns:
            raise RowError(f"{key}: expected the assistant's message alone, got {short(row[key])}")
    else:
        words = text(row, key)
    scores = {name: number(row, name) for name in HELPSTEER if row.get(name) is not None}
    answer = Response(words, scores, desirable=label(row))
    return [Example(tuple(prompt.turns), (answer,), source, system_info=prompt.system_info)]


def read_query(row: Mapping[str, Any], source: Source, reading: Reading) -> list[Example]:
    """A prompt that nobody has answered yet; several `turns` are asked one after another."""
    prompt = read_prompt(row)
    if prompt is None and "turns" in row:
        asked = [text({"turns": words}, "turns") for words in items(row, "turns", of=str)]
        prompt = Dialogue([Turn("user", words) for words in asked])
    if prompt is None or not prompt.turns:
        raise RowError("the prompt is missing")
    return [Example(tuple(prompt.turns), (), source, system_info=prompt.system_info)]
