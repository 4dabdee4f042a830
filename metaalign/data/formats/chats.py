"""Reads conversations and single answers, as in most data sets. One row of each format:

messages    {"messages": [{"role": "user", "content": "Hi"},
                          {"role": "assistant", "content": "Hello!"}], "label": true}, or of
            ms-swift {"messages": [...], "rejected_response": "Go away."}, where the last message is
            the better answer, or {"messages": [...], "rejected_messages": [...]}, or
            {"conversation": [{"input": "Hi", "output": "Hello!"}]}
sharegpt    {"conversations": [{"from": "human", "value": "Hi"}],
             "chosen": {"from": "gpt", "value": "Hello!"}, "rejected": {...}}, or
            {"conversations": ["Hi", "Hello!"]}
text        {"text": "<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\nHello!<|im_end|>"},
            or of any other template that `markers` splits
alpaca      {"instruction": "Translate.", "input": "hola", "output": "hello"}
completion  {"prompt": "Capital of Peru?", "completion": "Lima.", "label": true}, or of ms-swift
            {"query": "Capital of Peru?", "response": "Lima.", "rejected_response": "Quito."}, where
            the worse answer may also be under rejected or rejected_output, or of
            BeaverTails {"prompt": "Hi", "response": "Hello!", "is_safe": true}
"""

from collections.abc import Mapping, Sequence
from typing import Any

from metaalign.data.formats.exchanges import is_exchanges, read_exchanges
from metaalign.data.formats.fields import (
    is_filled,
    label,
    number,
    one_of,
    short,
    text,
)
from metaalign.data.formats.loss_flags import loss_weight
from metaalign.data.formats.markers import split_answer, split_template, without_end
from metaalign.data.formats.messages import (
    CONVERSATIONS,
    Dialogue,
    one_system,
    read_messages,
    refuse_repeats,
    words,
)
from metaalign.data.formats.prompts import read_prompt, read_system
from metaalign.data.formats.sides import answer_in, pair_under, sides_of, split_last
from metaalign.data.formats.transcripts import is_transcript, read_transcript
from metaalign.data.sources.options import SourceOptions
from metaalign.errors import RowError
from metaalign.examples import Example, Response, Source, Turn

ANSWER_KEYS = ("output", "completion", "response", "answer")
"""Keys of a single answer."""

REJECTED = ("rejected_response", "rejected_messages")
"""Keys of ms-swift's worse answer. The better one is the last message, or the response."""

WORSE = ("rejected_response", "rejected", "rejected_output")
"""Keys of a worse answer beside a single one."""

LOSS_MASK = "loss_mask"
"""Key of a list of 0 and 1, one for each message of a conversation."""

HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
"""Objectives by which HelpSteer rates an answer."""


def read_sharegpt(row: Mapping[str, Any], source: Source, options: SourceOptions) -> list[Example]:
    """`conversations`, with a pair, a label or neither."""
    return _read_conversation(row, "conversations", source, options)


def read_chat(row: Mapping[str, Any], source: Source, options: SourceOptions) -> list[Example]:
    """`messages` or `conversation`, with a pair, a label or neither."""
    key = one_of(row, CONVERSATIONS, "messages", equal=True)
    return _read_conversation(row, key, source, options)


def read_text(row: Mapping[str, Any], source: Source, options: SourceOptions) -> list[Example]:
    """A conversation as one text with the markers of another template."""
    said = conversation_in(text(row, "text"))
    if said is None:
        raise RowError("text: expected a conversation under the markers of a chat template")
    said = Dialogue(said.turns, one_system(said.system_info, read_system(row)))
    return _trained(row, "text", said, [1.0] * len(said.turns), source, options)


def conversation_in(said: str) -> Dialogue | None:
    """The turns of a text that is a whole conversation; None for other texts."""
    if is_transcript(said):
        return Dialogue(read_transcript(said, "text"))
    return split_template(said)


def _read_conversation(
    row: Mapping[str, Any], key: str, source: Source, options: SourceOptions
) -> list[Example]:
    said = _dialogue(row, key)
    said = Dialogue(said.turns, one_system(said.system_info, read_system(row)))
    sides = sides_of(row)
    if sides is not None:
        one_of(row, tuple({sides[1]: 0, **dict.fromkeys(REJECTED)}), "a worse answer", equal=True)
        return [pair_under(row, said, source, sides)]
    if any(row.get(name) is not None for name in REJECTED):
        return [_pair_with_last(row, key, said, source)]
    return _trained(row, key, said, _weights(row, key, said.turns), source, options)


def _dialogue(row: Mapping[str, Any], key: str) -> Dialogue:
    if is_exchanges(row.get(key)):
        return Dialogue(read_exchanges(row[key], key))
    return read_messages(row, key)


def _pair_with_last(row: Mapping[str, Any], key: str, said: Dialogue, source: Source) -> Example:
    """A pair of a conversation's last message and ms-swift's worse answer."""
    worse = one_of(row, REJECTED, "a worse answer", equal=True)
    before, chosen = split_last(said, key)
    if not before.turns:
        raise RowError(f"{key}: nothing is said before the last answer")
    if not _weights(row, key, said.turns)[-1]:
        raise RowError(f"{key}: the last answer has the weight 0; nothing to train")
    is_whole = isinstance(row[worse], list) and len(row[worse]) > 1
    better = row[key] if is_whole else {"role": "assistant", "content": chosen}
    return pair_under({**row, key: better}, before, source, (key, worse))


def _weights(row: Mapping[str, Any], key: str, turns: Sequence[Turn]) -> list[float]:
    """The weight of every turn; 0 for the user's turns."""
    if is_exchanges(row[key]):
        flags = [each if isinstance(each, dict) else {} for each in row[key]]
        weights = [
            loss_weight(flags[place // 2], key) if turn.role == "assistant" else 0.0
            for place, turn in enumerate(turns)
        ]
    else:
        weights = [
            loss_weight(message, key) if turn.role == "assistant" else 0.0
            for turn, message in zip(turns, row[key][-len(turns) :], strict=False)
        ]
    mask = row.get(LOSS_MASK)
    return weights if mask is None else _masked(weights, mask, len(row[key]))


def _masked(weights: Sequence[float], mask: Any, count: int) -> list[float]:
    """The weights, multiplied by the loss mask beside the messages.

    Args:
        count: Number of messages, including a system message.
    """
    if not isinstance(mask, list) or len(mask) != count or count < len(weights):
        wanted = f"{LOSS_MASK}: expected a list of 0 and 1, one a message"
        raise RowError(f"{wanted}, got {short(mask)}")
    flags = mask[-len(weights) :] if weights else []
    return [
        weight * loss_weight({LOSS_MASK: flag}, LOSS_MASK)
        for weight, flag in zip(weights, flags, strict=True)
    ]


def _trained(
    row: Mapping[str, Any],
    key: str,
    said: Dialogue,
    weights: Sequence[float],
    source: Source,
    options: SourceOptions,
) -> list[Example]:
    """An example for every answer to train on, and one for an open end that a teacher answers."""
    turns, good = said.turns, label(row)
    if turns and turns[0].role == "assistant":
        raise RowError(f"{key}: the first turn is the assistant's; it must be the user's")
    places = [place for place, turn in enumerate(turns) if turn.role == "assistant"]
    open_end = bool(turns) and turns[-1].role == "user"
    asks = open_end and options.responses is not None and good is None
    if not asks and (not places or (good is not None and open_end)):
        raise RowError(f"{key}: the last message is not the assistant's; nothing to train")
    refuse_repeats(turns if asks else turns[: places[-1] + 1])
    last = good is not None or options.assistant_turns == "last"
    trained = [place for place in (places[-1:] if last else places) if weights[place]]
    if asks and last:
        trained = []
    if not trained and not asks:
        which = "the last" if last else "every"
        raise RowError(f"{key}: {which} answer has the weight 0; nothing to train")
    examples = [
        Example(
            tuple(turns[:place]),
            (Response(turns[place].text, desirable=good),),
            source,
            system_info=said.system_info,
            weight=weights[place],
        )
        for place in trained
    ]
    waiting = Example(tuple(turns), (), source, system_info=said.system_info)
    return [*examples, waiting] if asks else examples


def read_answer(row: Mapping[str, Any], source: Source, options: SourceOptions) -> list[Example]:
    """A prompt and one answer, optionally with a label or a worse answer."""
    prompt = read_prompt(row)
    if prompt is None:
        raise RowError("the prompt is missing")
    key = one_of(row, ANSWER_KEYS, "an answer", equal=True)
    good = label(row)
    if any(row.get(name) is not None for name in WORSE):
        worse = one_of(row, WORSE, "a worse answer", equal=True)
        if good is not None:
            raise RowError(f"a label beside {worse}; a pair has none")
        return [pair_under(row, prompt, source, (key, worse))]
    _refuse_unread_worse(row, key)
    if isinstance(row.get(key), list | dict):
        before, said = answer_in(row[key], key)
    else:
        said = words(row, key)
        templated = split_answer(said)
        if templated is None:
            before, said = Dialogue([]), without_end(said) if prompt.is_templated else said
        else:
            before, said = split_last(templated, key)
    if before.turns or before.system_info:
        raise RowError(f"{key}: expected the assistant's message alone, got {short(row[key])}")
    answer = Response(said, helpsteer_scores(row), desirable=good)
    return [Example(tuple(prompt.turns), (answer,), source, system_info=prompt.system_info)]


def _refuse_unread_worse(row: Mapping[str, Any], key: str) -> None:
    """Check that an answer without a worse one has no other key that may hold it."""
    for name, value in row.items():
        holds_words = isinstance(value, str | list | dict) and is_filled(value)
        if holds_words and name.startswith("rejected"):
            raise RowError(
                f"{name} beside {key} may be a worse answer; rename it to {WORSE[0]}, or give "
                f"the source columns: {{chosen: {key}, rejected: {name}}}"
            )


def helpsteer_scores(row: Mapping[str, Any]) -> dict[str, float]:
    """HelpSteer's ratings of an answer. Empty unless all five are numbers."""
    try:
        return {name: number(row, name) for name in HELPSTEER}
    except RowError:
        return {}
