"""Splits texts that another model's chat template wrote into turns, or finds their markers.

    ChatML              "<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n"
    Llama-3             "<|start_header_id|>user<|end_header_id|>\\n\\nHi<|eot_id|>"
    Llama-4             "<|header_start|>user<|header_end|>\\n\\nHi<|eot|>"
    Gemma               "<bos><start_of_turn>user\\nHi<end_of_turn>\\n<start_of_turn>model\\n"
    Zephyr and Phi      "<|user|>\\nHi</s>\\n<|assistant|>\\n", or with <|end|> for </s>
    Phi                 "<|user|>Hi<|end|><|assistant|>"
    Llama-2 and Mistral "<s>[INST] <<SYS>>\\nBe brief.\\n<</SYS>>\\n\\nHi [/INST] Hello! </s>"
    Guanaco             "### Human: Hi### Assistant: Hello!"

A text is split only if it follows a template from beginning to end. Only a beginning-of-sequence
token may precede the template's first marker. A text that mentions a marker stays a text, and so
does one whose turns do not fit its place: a prompt begins and ends with the user, an answer ends
with the assistant, and no turn is empty. An answer's end marker is removed only under a prompt that
was split.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from metaalign.data.formats.messages import Dialogue
from metaalign.examples import Turn

_BEGINS = ("<s>", "<bos>", "<|begin_of_text|>", "<|endoftext|>")
_ENDS_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "<eos>", "</s>")
_ROLES = {
    "system": "system",
    "user": "user",
    "Human": "user",
    "assistant": "assistant",
    "model": "assistant",
    "Assistant": "assistant",
}


@dataclass(frozen=True)
class _Template:
    """A template with a header above every turn.

    Attributes:
        name: Name for notices.
        header: Pattern that opens a turn; its group is the role.
        ends: Any of these closes a turn.
        closes: Whether every turn but the last must be closed.
        alone: Whether a header and one turn that is not closed follow the template.
    """

    name: str
    header: re.Pattern[str]
    ends: tuple[str, ...]
    closes: bool = True
    alone: bool = True


_TEMPLATES = (
    _Template("ChatML", re.compile(r"<\|im_start\|>(\w+)(?:\n|$)"), ("<|im_end|>",)),
    _Template(
        "Llama-3",
        re.compile(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>(?:\n\n|$)"),
        ("<|eot_id|>",),
    ),
    _Template(
        "Llama-4", re.compile(r"<\|header_start\|>(\w+)<\|header_end\|>(?:\n\n|$)"), ("<|eot|>",)
    ),
    _Template("Gemma", re.compile(r"<start_of_turn>(\w+)(?:\n|$)"), ("<end_of_turn>",)),
    _Template(
        "Zephyr",
        re.compile(r"<\|(system|user|assistant)\|>(?:[ \t]*\n|\s*$)"),
        ("<|end|>", "</s>"),
        closes=False,
        alone=False,
    ),
    _Template("Phi", re.compile(r"<\|(system|user|assistant)\|>"), ("<|end|>",), alone=False),
    _Template("Guanaco", re.compile(r"###\s?(Human|Assistant):"), (), closes=False, alone=False),
)
_LLAMA_2 = "Llama-2 or Mistral"
_SYSTEM = re.compile(r"<<SYS>>(.*?)<</SYS>>(.*)", re.DOTALL)

_MARKS = {
    "<|im_start|>": "ChatML",
    "<|im_end|>": "ChatML",
    "<|start_header_id|>": "Llama-3",
    "<|eot_id|>": "Llama-3",
    "<|header_start|>": "Llama-4",
    "<start_of_turn>": "Gemma",
    "<end_of_turn>": "Gemma",
    "<|user|>": "Zephyr or Phi",
    "<|assistant|>": "Zephyr or Phi",
    "[INST]": _LLAMA_2,
    "[/INST]": _LLAMA_2,
    "### Human:": "Guanaco",
    "### Assistant:": "Guanaco",
    "### Instruction:": "Alpaca",
    "\N{FULLWIDTH VERTICAL LINE}User\N{FULLWIDTH VERTICAL LINE}>": "DeepSeek",
}
"""Markers that identify a template."""

_CLOSED_BY = {
    "<|im_end|>": "<|im_start|>",
    "<|eot_id|>": "<|start_header_id|>",
    "<|eot|>": "<|header_start|>",
    "<end_of_turn>": "<start_of_turn>",
    "<|end|>": "<|user|>",
    "<|endoftext|>": "<|endoftext|>",
    "<|end_of_text|>": "<|begin_of_text|>",
    "<eos>": "<bos>",
    "</s>": "<s>",
}
"""End marker -> start marker. A text that contains both shows the markers instead of using them."""
_LONGEST_END = 40
_MOST_BLANKS = 16
_OPENING = ("<", "[", "#")
"""First characters of texts that follow a template, after at most a few blanks."""


def may_hold_markers(text: str) -> bool:
    """Whether a text, or JSON with such a text in it, may contain a marker.

    Single characters are searched first, since most texts lack them.
    """
    return (
        "|" in text
        or ("]" in text and "INST]" in text)
        or ("_" in text and "_of_turn" in text)
        or ("#" in text and "### " in text)
        or ("\\" in text and "uff5c" in text)
    )


def marked_by(texts: Iterable[str]) -> list[str]:
    """Names of the templates whose markers occur in any of these texts."""
    held = [text for text in texts if may_hold_markers(text) or "\uff5c" in text]
    names = (name for mark, name in _MARKS.items() if any(mark in text for text in held))
    return list(dict.fromkeys(names))


def split_template(text: str) -> Dialogue | None:
    """The turns of a text that follows another template from beginning to end.

    A header at the end that asks for an answer is no turn.

    Returns:
        None if the text follows no template.
    """
    if text[:_MOST_BLANKS].lstrip()[:1] not in _OPENING:
        return None
    begun = _without_begin(text)
    if begun.startswith("[INST]"):
        return _split_instructions(begun)
    for template in _TEMPLATES:
        found = _split_headers(begun, template) if template.header.match(begun) else None
        if found is not None:
            return found
    return None


def split_prompt(text: str) -> Dialogue | None:
    """The turns of a prompt in another template, as `split_template`, from the user to the user."""
    said = split_template(text)
    fits = said is not None and said.turns[0].role == said.turns[-1].role == "user"
    return said if fits else None


def split_answer(text: str) -> Dialogue | None:
    """The turns of an answer in another template, as `split_template`, the assistant's last."""
    said = split_template(text)
    fits = said is not None and said.turns[-1].role == "assistant"
    return said if fits else None


def without_end(answer: str) -> str:
    """Remove the markers that close an answer's turn, and the blanks around it.

    An answer that also contains the opening marker shows the markers, and stays unchanged.
    """
    if not answer[-_LONGEST_END:].rstrip().endswith(">"):
        return answer
    said, ends = answer.strip(), []
    while end := next((end for end in _CLOSED_BY if said.endswith(end)), ""):
        said = said.removesuffix(end).rstrip()
        ends.append(end)
    shown = any(_CLOSED_BY[end] in said for end in ends)
    return said if ends and not shown else answer


def _without_begin(text: str) -> str:
    begun = text.lstrip()
    for mark in _BEGINS:
        if begun.startswith(mark):
            return begun.removeprefix(mark).lstrip()
    return begun


def _split_headers(text: str, template: _Template) -> Dialogue | None:
    _, *parts = template.header.split(text)
    roles = [_ROLES.get(role) for role in parts[::2]]
    said, closed = [], []
    for place, part in enumerate(parts[1::2]):
        words = part.strip()
        if place == len(roles) - 1:
            words = _without_end_of_text(words, template)
        end = next((end for end in template.ends if words.endswith(end)), "")
        said.append(words.removesuffix(end).rstrip())
        closed.append(bool(end))
    if any(end in words for end in template.ends for words in said):
        return None
    wanted = closed[:-1] if template.closes or any(closed[:-1]) else []
    if not all(wanted) or (not template.alone and len(roles) < 2 and not any(closed)):
        return None
    return _dialogue(roles, said)


def _without_end_of_text(words: str, template: _Template) -> str:
    end = next((end for end in _ENDS_OF_TEXT if words.endswith(end)), "")
    return words if end in template.ends else words.removesuffix(end).rstrip()


def _split_instructions(text: str) -> Dialogue | None:
    """Split Llama-2 or Mistral text: the query is between [INST] and [/INST], then its answer."""
    roles: list[str | None] = []
    said: list[str] = []
    for exchange in text.split("[INST]")[1:]:
        query, mark, answer = exchange.partition("[/INST]")
        answer = answer.strip().removesuffix("<s>").rstrip().removesuffix("</s>").rstrip()
        if not mark or "[/INST]" in answer or "</s>" in answer:
            return None
        roles += ["user", "assistant"]
        said += [query.strip(), answer]
    found = _SYSTEM.match(said[0])
    if found is not None:
        roles = ["system", *roles]
        said = [found[1].strip(), found[2].strip(), *said[1:]]
    return _dialogue(roles, said)


def _dialogue(roles: list[str | None], said: list[str]) -> Dialogue | None:
    """The turns and an optional first system text; None if a role is unknown or a turn empty."""
    system = ""
    if roles[0] == "system":
        system, roles, said = said[0], roles[1:], said[1:]
    if roles and roles[-1] == "assistant" and not said[-1]:
        roles, said = roles[:-1], said[:-1]
    turns = [
        Turn(role, words)
        for role, words in zip(roles, said, strict=True)
        if role in ("user", "assistant") and words
    ]
    return Dialogue(turns, system, True) if turns and len(turns) == len(roles) else None
