"""Reads trees of messages in which people ranked the replies to a query. A row of Open Assistant:

oasst       {"message_tree_id": "t", "tree_state": "ready_for_export",
             "prompt": {"text": "Hi", "role": "prompter", "replies": [
                 {"text": "Hello!", "role": "assistant", "rank": 0, "replies": []},
                 {"text": "Go.", "role": "assistant", "rank": 1, "replies": []}]}}

Each query becomes an example. A lower rank is better: "the most preferred message has rank 0",
https://huggingface.co/datasets/OpenAssistant/oasst1. Messages that are deleted, synthetic or called
spam (`review_result` false) are left out with their subtrees, as in Open Assistant's own training.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from metaalign.data.formats.fields import items, mapping, number, short, text
from metaalign.data.sources.options import SourceOptions
from metaalign.errors import RowError
from metaalign.examples import PREFERENCE, Example, Response, Source, Turn

OASST = ("message_tree_id", "prompt")

_Node = Mapping[str, Any]


def read_tree(row: _Node, source: Source, options: SourceOptions) -> list[Example]:
    """One example for each query: a ranking if its replies are ranked, else one for each reply.

    A tree without a reply becomes a prompt.
    """
    root = mapping(row, "prompt", name="key")
    if _is_left_out(root):
        raise RowError("prompt: the message is deleted, synthetic or called spam")
    examples: list[Example] = []
    waiting = deque([([Turn("user", _said(root, "prompter"))], root)])
    while waiting:
        turns, node = waiting.popleft()
        replies = _replies(node)
        examples += _answered(turns, replies, source)
        for reply in replies:
            answered = [*turns, Turn("assistant", _said(reply, "assistant"))]
            for query in _replies(reply):
                waiting.append(([*answered, Turn("user", _said(query, "prompter"))], query))
    return examples or [Example((Turn("user", _said(root, "prompter")),), (), source)]


def left_out_of_tree(row: _Node) -> Iterator[str]:
    """A notice if some messages of the tree are left out."""
    waiting = [row.get("prompt")]
    while waiting:
        node = waiting.pop()
        if not isinstance(node, Mapping):
            continue
        if _is_left_out(node):
            yield "messages that are deleted, synthetic or called spam are left out"
            return
        waiting += node.get("replies") or []


def _answered(turns: Sequence[Turn], replies: Sequence[_Node], source: Source) -> list[Example]:
    ranked = [reply for reply in replies if reply.get("rank") is not None]
    if len(ranked) < 2:
        texts = dict.fromkeys(text(reply, "text") for reply in replies)
        return [Example(tuple(turns), (Response(said),), source) for said in texts]
    ranks: dict[str, float | None] = {}
    for reply in sorted(ranked, key=lambda reply: number(reply, "rank")):
        ranks.setdefault(text(reply, "text"), 0.0 - number(reply, "rank"))
    for reply in replies:
        ranks.setdefault(text(reply, "text"), None)
    responses = tuple(Response(said, {PREFERENCE: rank}) for said, rank in ranks.items())
    return [Example(tuple(turns), responses, source)]


def _replies(node: _Node) -> list[_Node]:
    return [reply for reply in items(node, "replies", default=()) if not _is_left_out(reply)]


def _is_left_out(node: _Node) -> bool:
    marked = node.get("deleted") is True or node.get("synthetic") is True
    return marked or node.get("review_result") is False


def _said(node: _Node, role: str) -> str:
    if node.get("role") != role:
        raise RowError(f"replies: expected the role {role!r} here, got {short(node.get('role'))}")
    return text(node, "text")
