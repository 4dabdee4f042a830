"""Which column of a table holds what, so that any table can be read without code."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field, model_validator

from metaalign.config.sections import Section

Column = Annotated[str, Field(min_length=1)]
"""A column's name; dots lead into objects, and numbers into lists: `data.answers.0.text`."""

Columns = Column | tuple[Column, ...]
"""A column that holds a list, or several columns that hold one value each."""

_SINGLE = ("response", "chosen", "rejected", "messages")
"""Answers that `scores` is not about."""


class ColumnsConfig(Section):
    """Names of the columns that hold what a row says. A column that has one of these names already
    needs no line of its own; every other column is left out, and told."""

    prompt: Column | None = None
    """What the user asks: a text, or a list of messages."""

    response: Column | None = None
    """The answer to train: a text, or the assistant's message."""

    chosen: Column | None = None
    """The better answer: a text, a message, or a list of messages."""

    rejected: Column | None = None
    """The worse answer, of the same kind as `chosen`."""

    messages: Column | None = None
    """A conversation: a list of messages with roles."""

    responses: Columns | None = None
    """Several answers: a column that holds a list, or a list of columns, such as
    [answer_a, answer_b]. Answers that a row does not have are left out with their scores."""

    scores: Columns | None = None
    """Scores of the answers in `responses`, in the same order."""

    score_chosen: Column | None = None
    """Rating of `chosen`: a number."""

    score_rejected: Column | None = None
    """Rating of `rejected`: a number."""

    label: Column | None = None
    """Whether the answer is desirable: true or false, 1 or 0."""

    system_info: Column | None = None
    """System Info: a text."""

    user_info: Column | None = None
    """User Info: a text."""

    margin: Column | None = None
    """By how much `chosen` is better: a number."""

    weight: Column | None = None
    """Weight of the example in the loss: a number above 0."""

    @model_validator(mode="after")
    def _one_use_each(self) -> "ColumnsConfig":
        used: dict[str, str] = {}
        for name, column in self.each():
            if column in used:
                raise ValueError(f"{used[column]} and {name} both take the column {column!r}")
            used[column] = name
        if not used:
            raise ValueError("give at least one, such as prompt, or leave columns out")
        return self

    @model_validator(mode="after")
    def _scores_of_answers(self) -> "ColumnsConfig":
        if self.scores is None:
            return self
        single = [name for name in _SINGLE if name in self.named()]
        if self.responses is None and single:
            verb = "is" if len(single) == 1 else "are"
            raise ValueError(
                f"scores are of several answers, and only {', '.join(single)} {verb} named; name "
                "the answers in responses"
            )
        if isinstance(self.responses, tuple) and isinstance(self.scores, tuple):
            counts = len(self.responses), len(self.scores)
            if counts[0] != counts[1]:
                raise ValueError(
                    f"responses takes {counts[0]} columns and scores {counts[1]}; give each answer "
                    "one score"
                )
        return self

    def named(self) -> dict[str, str | tuple[str, ...]]:
        """What is named: the column, or the columns, of each."""
        return {name: column for name, column in self if column is not None}

    def each(self) -> Iterator[tuple[str, str]]:
        """Every column that is named, with what it holds."""
        for name, columns in self.named().items():
            for column in (columns,) if isinstance(columns, str) else columns:
                yield name, column
