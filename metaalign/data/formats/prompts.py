"""Reads a row's prompt: messages, a transcript, or a question with its input and history.

prompts     {"prompt": "Capital of Peru?"}, {"turns": ["Capital of Peru?", "And of Chile?"]} or
            {"messages": [{"role": "system", "content": "Be brief."},
                          {"role": "user", "content": "Capital of Peru?"}]}
"""

from collections.abc import Mapping
from typing import Any

from metaalign.data.formats.fields import is_filled, items, one_of, short, text
from metaalign.data.formats.markers import split_prompt
from metaalign.data.formats.messages import (
    CONVERSATIONS,
    Dialogue,
    one_system,
    read_messages,
    refuse_repeats,
    words,
)
from metaalign.data.formats.transcripts import read_open_transcript
from metaalign.data.sources.options import SourceOptions
from metaalign.errors import RowError
from metaalign.examples import Example, Source, Turn

_QUESTIONS = ("prompt", "instruction", "question", "query")
PROMPT_KEYS = (*_QUESTIONS, "input")
"""Keys of a prompt. `input` beside another one is part of that prompt."""

SYSTEM_KEYS = ("system", "system_prompt")
BESIDE = ("input", "context", "history")
"""Keys that add to a question."""

QUERY_KEYS = frozenset(
    {"prompt", "turns", *SYSTEM_KEYS, "id", "key", "prompt_id", "question_id", "category"}
    | {"reference", "instruction_id_list", "kwargs"}
)
"""Keys that may occur beside a prompt without an answer. Any other key may hold an answer."""
SPOKEN_QUERIES = (*CONVERSATIONS, "conversations", "turns")
"""Keys of a prompt of several turns."""
_ASKING_KEYS = QUERY_KEYS.union(PROMPT_KEYS, BESIDE)


def read_prompt(row: Mapping[str, Any]) -> Dialogue | None:
    """The prompt of a row with its system message, history and input; None if it has none.

    Raises:
        RowError: a field is of a wrong type, or would be dropped.
    """
    if all(row.get(name) is None for name in PROMPT_KEYS):
        return None
    key = _prompt_key(row)
    system = read_system(row)
    said = _spoken(row, key)
    if said is not None:
        refuse_beside(row, key)
        return said._replace(system_info=one_system(said.system_info, system))
    asked = text(row, key)
    more = [text(row, name, "") for name in ("input", "context") if name != key]
    asked = "\n\n".join([asked, *(part for part in more if part.strip() and part != asked)])
    return Dialogue([*_history(row), Turn("user", asked)], system)


def _prompt_key(row: Mapping[str, Any]) -> str:
    """The key of the question. A list of messages with the same text is the same prompt."""
    filled = [name for name in _QUESTIONS if is_filled(row.get(name))]
    if not filled:
        return one_of(row, PROMPT_KEYS, "a prompt")
    if len(filled) > 1:
        said = {name: _single_text(row[name]) for name in filled}
        one_of(said, _QUESTIONS, "a prompt", equal=True)
        filled.sort(key=lambda name: isinstance(row[name], str))
    return filled[0]


def _single_text(value: Any) -> Any:
    """The text of one message, also in a list, else the value, for comparisons."""
    if isinstance(value, dict):
        return value.get("content")
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        return value[0].get("content")
    return value


def _spoken(row: Mapping[str, Any], key: str) -> Dialogue | None:
    """The turns of a prompt that is a conversation; None for a plain question."""
    value = row[key]
    if not isinstance(value, str):
        return read_messages({key: [value]} if isinstance(value, dict) else row, key)
    said = words(row, key)
    templated = split_prompt(said)
    if templated is not None:
        return templated
    turns = read_open_transcript(said, key)
    return None if turns is None else Dialogue(turns)


def read_system(row: Mapping[str, Any]) -> str:
    """The System Info of a row, beside its prompt.

    Raises:
        RowError: it is not text, or there are two different ones.
    """
    return one_system(*(text(row, name, "") for name in SYSTEM_KEYS))


def refuse_beside(row: Mapping[str, Any], key: str) -> None:
    """Check that a row with a conversation has no keys that add to a question.

    Raises:
        RowError: the row has such a key, and its value would be dropped.
    """
    for name in BESIDE:
        if name != key and is_filled(row.get(name)):
            raise RowError(f"{name} beside a conversation in {key}; put it into that conversation")


def _history(row: Mapping[str, Any]) -> list[Turn]:
    turns = []
    for exchange in items(row, "history", of=list, default=()):
        if len(exchange) != 2:
            raise RowError(f"history: expected [query, answer], got {short(exchange)}")
        pair = {"query": exchange[0], "answer": exchange[1]}
        turns += [Turn("user", text(pair, "query")), Turn("assistant", text(pair, "answer"))]
    return turns


def read_query(row: Mapping[str, Any], source: Source, options: SourceOptions) -> list[Example]:
    """A prompt without an answer. Several `turns` are the user's turns, one after another.

    Any other key may hold an answer, so the row is refused unless the settings name the format. In
    that case the key is counted as not read.
    """
    other = [key for key, value in row.items() if is_filled(value) and key not in _ASKING_KEYS]
    if other and not options.format_is_set:
        raise RowError(
            f"beside the prompt stands {', '.join(sorted(other))}, which may be an answer; if "
            "it is none, set format=prompts"
        )
    spoken = [key for key in SPOKEN_QUERIES if is_filled(row.get(key))]
    prompt = _spoken_query(row, spoken[0]) if spoken else read_prompt(row)
    if prompt is None or not prompt.turns:
        raise RowError("the prompt is missing")
    return [Example(tuple(prompt.turns), (), source, system_info=prompt.system_info)]


def _spoken_query(row: Mapping[str, Any], key: str) -> Dialogue:
    one_of(row, (*SPOKEN_QUERIES, *PROMPT_KEYS), "a prompt")
    refuse_beside(row, key)
    if key == "turns":
        asked = [text({key: said}, key) for said in items(row, key, of=str)]
        return Dialogue([Turn("user", said) for said in asked], read_system(row))
    said = read_messages(row, key)
    if said.turns and said.turns[-1].role == "assistant":
        raise RowError(f"{key}: the last message is the assistant's; a prompt ends with the user's")
    refuse_repeats(said.turns)
    return Dialogue(said.turns, one_system(said.system_info, read_system(row)))
