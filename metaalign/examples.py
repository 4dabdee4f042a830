"""`Example`, the one record of metaalign: a prompt and its judged responses.

Imports neither a tokenizer nor Ray. `data/formats/own.py` shows an example as JSON.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from metaalign.errors import RowError

PREFERENCE = "preference"
"""The name of the objective in data with a single, unnamed objective."""

TRAIN, HELD_OUT = "train", "held_out"


@dataclass(frozen=True)
class Turn:
    """One message. `user_info`, on a user's turn, replaces the User Info from there on."""

    role: Literal["user", "assistant"]
    text: str
    user_info: str = ""


@dataclass(frozen=True)
class Response:
    """One answer and its judgements.

    Attributes:
        scores: Objective -> score; None or a missing key means that it was not judged.
        desirable: Whether the answer is good; None if that is unknown.
    """

    text: str
    scores: Mapping[str, float | None] = field(default_factory=dict)
    desirable: bool | None = None


@dataclass(frozen=True)
class Source:
    """The file that an example was read from, and its source row there, counted from 0."""

    file: str
    row: int


@dataclass(frozen=True)
class Example:
    """A prompt in three tiers and K judged responses.

    K = 1 serves SFT, K = 2 is a preference pair, K > 2 a ranking. K = 0 is a prompt without
    answers, for a teacher to answer; its user turns may follow each other, and are answered one by
    one.

    Attributes:
        weight: Weight of the example in the loss.
        margin: Margin of the reward difference in preference losses.
        order_by: The objective whose scores order the responses.
        conversation: Name of the conversation that the example is part of.
    """

    turns: tuple[Turn, ...]
    responses: tuple[Response, ...]
    source: Source
    system_info: str = ""
    user_info: str = ""
    weight: float = 1.0
    margin: float = 0.0
    order_by: str = PREFERENCE
    tags: Mapping[str, str] = field(default_factory=dict)
    conversation: str = ""

    def validate(self, *, answered: bool = True) -> None:
        """Check the example.

        Args:
            answered: Require responses, and turns that alternate. False checks a prompt that a
                teacher will answer.

        Raises:
            RowError: names the field and what is wrong with it.
        """
        if not self.turns or self.turns[-1].role != "user":
            raise RowError("turns must end in a user's query")
        for turn in self.turns:
            if not turn.text.strip():
                raise RowError(f"a {turn.role} turn is empty")
            if turn.user_info and turn.role != "user":
                raise RowError("only a user's turn may update the user_info")
        for first, second in zip(self.turns, self.turns[1:], strict=False):
            if first.role == second.role and (answered or first.role == "assistant"):
                raise RowError(f"two {first.role} turns follow each other")
        if self.turns[0].role != "user":
            raise RowError("the first turn must be the user's")
        if answered and not self.responses:
            raise RowError("there is no response")
        if any(not response.text.strip() for response in self.responses):
            raise RowError("a response is empty")
        texts = [response.text for response in self.responses]
        if len(set(texts)) < len(texts):
            raise RowError("two responses are equal")
        if not math.isfinite(self.weight) or self.weight <= 0:
            raise RowError(f"weight must be a positive number, got {self.weight!r}")
        if not math.isfinite(self.margin):
            raise RowError(f"margin must be a finite number, got {self.margin!r}")
        self._validate_texts()

    def _validate_texts(self) -> None:
        texts = [self.system_info, self.user_info]
        texts += [text for turn in self.turns for text in (turn.text, turn.user_info)]
        texts += [response.text for response in self.responses]
        if not all(map(is_utf8, texts)):
            raise RowError("text is not valid UTF-8")

    def order_scores(self) -> list[float | None]:
        """(K,) the scores of the objective `order_by`."""
        return [response.scores.get(self.order_by) for response in self.responses]


def is_utf8(text: str) -> bool:
    """Whether a text can be encoded as UTF-8, which lone surrogates cannot."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def best_response(scores: Sequence[float | None], desirable: Sequence[bool | None]) -> int | None:
    """The response that SFT trains on: the highest-scored one that is not marked undesirable.

    Args:
        scores: (K,). A response without a score ranks below every score.
        desirable: (K,) true, false, or None for unknown.

    Returns:
        Its position (the first if several are equal), or None if every response is undesirable.
    """
    allowed = [k for k, good in enumerate(desirable) if good is not False]
    if not allowed:
        return None
    return max(allowed, key=lambda k: (-math.inf if scores[k] is None else scores[k], -k))


def ordered_pairs(scores: Sequence[float | None]) -> list[tuple[int, int]]:
    """Every pair of positions (better, worse) whose scores differ. Missing scores form no pair."""
    return [
        (better, worse)
        for better, high in enumerate(scores)
        for worse, low in enumerate(scores)
        if high is not None and low is not None and high > low
    ]
