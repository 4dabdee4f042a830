"""Conditions on a row's values that identify its shape if its keys alone do not."""

from collections.abc import Mapping
from typing import Any

from metaalign.data.formats.chats import ANSWER_KEYS, conversation_in
from metaalign.data.formats.messages import CONVERSATIONS
from metaalign.data.formats.numbered import ARENA, NUMBERED, ONE_HOT, STRENGTHS, WINNERS, answers_of
from metaalign.data.formats.prompts import PROMPT_KEYS, QUERY_KEYS
from metaalign.data.formats.rankings import LIST_SCORES, LISTS
from metaalign.data.formats.sides import sides_of

Row = Mapping[str, Any]


def _has_prompt(row: Row) -> bool:
    return any(row.get(key) is not None for key in PROMPT_KEYS)


def is_hh_rlhf(row: Row) -> bool:
    """Whether chosen and rejected are whole transcripts without a separate prompt."""
    return isinstance(row["chosen"], str) and not _has_prompt(row) and not is_conversation(row)


def is_pair(row: Row) -> bool:
    """Whether a row has a better and a worse answer with a separate prompt or in conversations."""
    keys = sides_of(row)
    if keys is None or any(row.get(key) is None for key in keys):
        return False
    return _has_prompt(row) or (isinstance(row[keys[0]], list) and not _asks(row))


def is_rated(row: Row) -> bool:
    """Whether a row has a prompt and several answers that are objects or have a list of scores."""
    answers = [row[key] for key in LISTS if isinstance(row.get(key), list)]
    scored = any(isinstance(row.get(key), list) for key in LIST_SCORES)
    judged = any(scored or any(isinstance(each, dict) for each in some) for some in answers)
    return _has_prompt(row) and judged


def is_answered(row: Row) -> bool:
    """Whether a row has a prompt and one answer."""
    return _has_prompt(row) and any(row.get(key) is not None for key in ANSWER_KEYS)


def is_query(row: Row) -> bool:
    """Whether a row has a prompt and no key that may hold an answer."""
    given = {key for key, value in row.items() if value is not None}
    return given <= QUERY_KEYS and ("prompt" in given or "turns" in given)


def is_conversation(row: Row) -> bool:
    """Whether a row has a list of messages."""
    return any(isinstance(row.get(key), list) for key in CONVERSATIONS)


def is_templated(row: Row) -> bool:
    """Whether a row's text is a conversation with the markers of a template."""
    return isinstance(row["text"], str) and conversation_in(row["text"]) is not None


def is_helpsteer(row: Row) -> bool:
    """Whether a row has HelpSteer's preference and its two answers."""
    return any(
        row.get(key) is not None and answers_of(row, (keys,)) for key, keys in STRENGTHS.items()
    )


def is_arena(row: Row) -> bool:
    """Whether a row has two lettered answers and a winner."""
    named = row.get("winner") is not None or all(row.get(key) is not None for key in ONE_HOT)
    return named and answers_of(row, ARENA) is not None


def is_numbered(row: Row) -> bool:
    """Whether a row has two numbered answers and names the better one."""
    named = any(row.get(key) is not None for key in WINNERS)
    return named and answers_of(row, NUMBERED) is not None


def is_tree(row: Row) -> bool:
    """Whether the prompt is a message with replies."""
    return isinstance(row["prompt"], dict)


def _asks(row: Row) -> bool:
    """Whether a row has messages that end with the user's."""
    ends = [row[key][-1] for key in CONVERSATIONS if isinstance(row.get(key), list) and row[key]]
    return any(
        isinstance(end, dict) and "user" in (end.get("role"), end.get("from")) for end in ends
    )
