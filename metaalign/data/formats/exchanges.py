"""Reads conversations as lists of queries and answers, without roles.

The last answer of a list may be missing. An exchange may have the loss flags of a message.

Capybara  [{"input": "Hi", "output": "Hello!"}, {"input": "More", "output": "Sure."}]
ms-swift  [{"human": "Hi", "assistant": "Hello!"}]
pairs     [["Hi", "Hello!"], ["More", "Sure."]]
LIMA      ["Hi", "Hello!", "More", "Sure."], the user first
"""

from collections.abc import Mapping, Sequence
from typing import Any

from metaalign.data.formats.fields import as_text, is_filled, one_of, short, text
from metaalign.errors import RowError
from metaalign.examples import Turn

_ASKED = ("input", "human", "user", "question", "query", "prompt", "instruction")
_ANSWERED = ("output", "assistant", "gpt", "bot", "answer", "response", "completion")
_SYSTEM = ("system", "system_prompt")
EXCHANGE_KEYS = frozenset({*_ASKED, *_ANSWERED})
"""Keys of an exchange that is an object."""


def is_exchanges(values: Any) -> bool:
    """Whether a list has exchanges and not messages, judged by its first item."""
    if not isinstance(values, list | tuple) or not values:
        return False
    first = values[0]
    if isinstance(first, dict):
        named = "role" in first or "from" in first
        return not named and not EXCHANGE_KEYS.isdisjoint(first)
    return isinstance(first, str | list | tuple)


def read_exchanges(values: Sequence[Any], key: str) -> list[Turn]:
    """The turns of a list of exchanges; the last answer may be missing.

    Raises:
        RowError: an item is no exchange of text, or differs in shape from the first one.
    """
    kind = str if isinstance(values[0], str) else dict if isinstance(values[0], dict) else list
    if not all(isinstance(each, kind) for each in values):
        raise RowError(f"{key}: expected a list of exchanges of one shape, got {short(values)}")
    said: list[Any] = []
    for each in values:
        said += [each] if kind is str else _exchange(each, key)
    if said[-1] is None:
        said.pop()
    return [
        Turn("assistant" if place % 2 else "user", as_text(words, key))
        for place, words in enumerate(said)
    ]


def _exchange(value: Mapping[str, Any] | Sequence[Any], key: str) -> Sequence[Any]:
    """The query and the answer; the answer may be None."""
    if not isinstance(value, Mapping):
        if len(value) != 2:
            raise RowError(f"{key}: expected [query, answer], got {short(value)}")
        return value
    system = next((name for name in _SYSTEM if is_filled(value.get(name))), None)
    if system is not None:
        raise RowError(f"{key}: {system} inside an exchange; put it beside {key}, as system")
    asked = text(value, one_of(value, _ASKED, "a query"))
    answer = value.get(one_of(value, _ANSWERED, "an answer"))
    return [asked, answer if is_filled(answer) else None]
