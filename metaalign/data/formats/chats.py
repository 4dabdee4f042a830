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

from metaalign.data.formats.fields import (
    flag,
    is_filled,
    items,
    label,
    number,
    one_of,
    short,
    text,
)
from metaalign.data.formats.messages import (
    Dialogue,
    holds_turns,
    is_transcript,
    one_system,
    read_message,
    read_messages,
    read_transcript,
    same_turns,
    words,
)
from metaalign.data.formats.prompts import (
    BESIDE,
    PROMPT_KEYS,
    SYSTEM_KEYS,
    read_prompt,
    read_system,
    refuse_beside,
)
from metaalign.data.sources.options import SourceOptions
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

QUERY_KEYS = frozenset(
    {"prompt", "turns", *SYSTEM_KEYS, "id", "key", "prompt_id", "question_id", "category"}
    | {"reference", "instruction_id_list", "kwargs"}
)
"""Keys that stand beside a prompt which nobody has answered; any other may hold an answer."""
_ASKING_KEYS = QUERY_KEYS.union(PROMPT_KEYS, BESIDE)


def read_sharegpt(row: Mapping[str, Any], source: Source, options: SourceOptions) -> list[Example]:
    """`conversations`, with a pair, a label or neither."""
    return _read_conversation(row, "conversations", source, options)


def read_chat(row: Mapping[str, Any], source: Source, options: SourceOptions) -> list[Example]:
    """`messages` or `conversation`, with a pair, a label or neither."""
    key = one_of(row, ("messages", "conversation"), "messages")
    return _read_conversation(row, key, source, options)


def _read_conversation(
    row: Mapping[str, Any], key: str, source: Source, options: SourceOptions
) -> list[Example]:
    said = read_messages(row, key)
    turns, system = said.turns, one_system(said.system_info, read_system(row))
    if is_pair(row):
        return [_pair(row, Dialogue(turns, system), source)]
    if turns and turns[0].role == "assistant":
        raise RowError(f"{key}: the first turn is the assistant's; it must be the user's")
    good = label(row)
    places = [place for place, turn in enumerate(turns) if turn.role == "assistant"]
    if not places or (good is not None and places[-1] < len(turns) - 1):
        raise RowError(f"{key}: the last message is not the assistant's; nothing to train")
    last = good is not None or options.assistant_turns == "last"
    trained = _trained(items(row, key)[-len(turns) :], places[-1:] if last else places)
    if not trained:
        which = "the last" if last else "every"
        raise RowError(f"{key}: {which} answer has the weight 0; nothing to train")
    return [
        Example(
            tuple(turns[:place]),
            (Response(turns[place].text, desirable=good),),
            source,
            system_info=system,
        )
        for place in trained
    ]


def _trained(messages: Sequence[Mapping[str, Any]], places: Sequence[int]) -> list[int]:
    """The places of the answers that OpenAI's weight 0 or axolotl's train false does not leave out.

    Args:
        places: Of all answers.
    """
    return [
        place
        for place in places
        if number(messages[place], "weight", 1.0) > 0
        and flag(messages[place], "train") is not False
    ]


def is_pair(row: Mapping[str, Any]) -> bool:
    """Whether a row has an answer that is chosen or rejected."""
    return row.get("chosen") is not None or row.get("rejected") is not None


def read_pair(row: Mapping[str, Any], source: Source, options: SourceOptions) -> list[Example]:
    """`chosen` and `rejected`, below a prompt of their own or as whole conversations."""
    prompt = read_prompt(row)
    if prompt is None:
        refuse_beside(row, "chosen")
        prompt = Dialogue([], read_system(row))
    return [_pair(row, prompt, source)]


def _pair(row: Mapping[str, Any], prompt: Dialogue, source: Source) -> Example:
    (before, chosen), (other, rejected) = (
        _side(row, key, prompted=bool(prompt.turns)) for key in ("chosen", "rejected")
    )
    if before.system_info != other.system_info or not same_turns(before.turns, other.turns):
        raise RowError("chosen and rejected differ before their last turn")
    if before.turns and not holds_turns(before.turns, prompt.turns):
        raise RowError("the prompt is not among the messages before the last of chosen")
    scores: list[dict[str, float | None]] = [{PREFERENCE: 1.0}, {PREFERENCE: 0.0}]
    for each, key in zip(scores, pair_ratings(row), strict=False):
        each[RATING] = number(row, key)
    return Example(
        tuple(before.turns or prompt.turns),
        (Response(chosen, scores[0]), Response(rejected, scores[1])),
        source,
        system_info=one_system(prompt.system_info, before.system_info),
    )


def pair_ratings(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Where the ratings of a pair's two sides stand in a row; empty where one of them does not."""
    rated = (keys for keys in RATED_PAIRS if all(row.get(key) is not None for key in keys))
    return next(rated, ()) if is_pair(row) else ()


def _side(row: Mapping[str, Any], key: str, *, prompted: bool) -> tuple[Dialogue, str]:
    """What was said before an answer, as far as the field repeats it, and the answer."""
    value = row.get(key)
    if isinstance(value, dict):
        role, said = read_message(value, key)
        return _split(Dialogue([Turn(role, said)]), key)  # pyright: ignore[reportArgumentType]
    if isinstance(value, list | tuple):
        return _split(read_messages(row, key), key)
    answer = words(row, key)
    if is_transcript(answer) or not prompted:
        return _split(Dialogue(read_transcript(answer, key)), key)
    return Dialogue([]), answer


def _split(said: Dialogue, key: str) -> tuple[Dialogue, str]:
    if not said.turns or said.turns[-1].role != "assistant":
        raise RowError(f"{key}: the last turn is not the assistant's")
    return Dialogue(said.turns[:-1], said.system_info), said.turns[-1].text


def read_answer(row: Mapping[str, Any], source: Source, options: SourceOptions) -> list[Example]:
    """A prompt and one answer, with a label or without."""
    prompt = read_prompt(row)
    if prompt is None:
        raise RowError("the prompt is missing")
    key = one_of(row, ANSWER_KEYS, "an answer")
    if isinstance(row.get(key), list):
        before, said = _split(read_messages(row, key), key)
        if before.turns or before.system_info:
            raise RowError(f"{key}: expected the assistant's message alone, got {short(row[key])}")
    else:
        said = words(row, key)
    answer = Response(said, helpsteer_scores(row), desirable=label(row))
    return [Example(tuple(prompt.turns), (answer,), source, system_info=prompt.system_info)]


def helpsteer_scores(row: Mapping[str, Any]) -> dict[str, float]:
    """HelpSteer's ratings of an answer; none unless all five are there and numbers."""
    try:
        return {name: number(row, name) for name in HELPSTEER}
    except RowError:
        return {}


def read_query(row: Mapping[str, Any], source: Source, options: SourceOptions) -> list[Example]:
    """A prompt that nobody has answered yet; several `turns` are asked one after another.

    What else stands in a row may be an answer, so it is refused unless the settings name the
    format; then it is told to be not read.
    """
    other = [key for key, value in row.items() if is_filled(value) and key not in _ASKING_KEYS]
    if other and not options.is_told:
        raise RowError(
            f"beside the prompt stands {', '.join(sorted(other))}, which may be an answer; where "
            "nobody has answered, set format=prompts"
        )
    if is_filled(row.get("turns")):
        one_of(row, ("turns", *PROMPT_KEYS), "a prompt")
        refuse_beside(row, "turns")
        asked = [text({"turns": said}, "turns") for said in items(row, "turns", of=str)]
        prompt = Dialogue([Turn("user", said) for said in asked], read_system(row))
    else:
        prompt = read_prompt(row)
    if prompt is None or not prompt.turns:
        raise RowError("the prompt is missing")
    return [Example(tuple(prompt.turns), (), source, system_info=prompt.system_info)]
