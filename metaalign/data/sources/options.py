"""The settings of a source that decide how its rows become examples. Reads no file."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from metaalign.config.columns import ColumnsConfig
from metaalign.config.prepare import Recipe, Wire
from metaalign.config.teacher import JudgementConfig, NegativesConfig, ResponsesConfig
from metaalign.errors import RowError
from metaalign.examples import HELD_OUT, TRAIN, Example


@dataclass(frozen=True)
class SourceOptions:
    """How a source's rows become examples.

    Attributes:
        format_is_set: Whether the settings name the format. Else the first rows decide it.
    """

    format_is_set: bool = False
    field: str | None = None
    columns: ColumnsConfig | None = None
    system_info: str = ""
    user_info: str | None = None
    order_by: str | None = None
    assistant_turns: Literal["every", "last"] = "every"
    held_out_ratio: float = 0.0
    share: tuple[float, float] = (0.0, 1.0)
    oppose_personas: bool = True
    recipe: Recipe | None = None
    held_out_families: tuple[str, ...] = ()
    wire: Wire = "ultrafeedback"
    objectives: tuple[tuple[str, str], ...] = ()
    warm_up_ratio: float = 1.0
    responses: ResponsesConfig | None = None
    judgement: JudgementConfig | None = None
    judged_by: str | None = None
    negatives: NegativesConfig | None = None
    seed: int = 0

    @property
    def is_taught(self) -> bool:
        """Whether a teacher is asked for responses, judgements or negatives."""
        return (self.responses, self.judgement, self.negatives) != (None, None, None)

    def split(self, key: str) -> str:
        """The split of a conversation or statement, chosen by the hash of its key."""
        return HELD_OUT if _drawn(f"{self.seed}/{key}") < self.held_out_ratio else TRAIN

    def takes(self, example: Example, *, written: bool = False) -> bool:
        """Whether an example belongs to the share of the data that the store takes.

        Args:
            written: Whether the example was written by rule. Then all examples with one query
                belong to one share, since the same example may be written twice.
        """
        if self.share == (0.0, 1.0) or example.tags["split"] == HELD_OUT:
            return True
        key = example.turns[-1].text if written else example.conversation
        first, last = self.share
        return first <= _drawn(f"{self.seed}/share/{key}") < last

    def ordered(self, examples: list[Example]) -> list[Example]:
        """Order a row's examples by the setting `order_by`, and leave out those without its scores.

        Raises:
            RowError: no answer of the row has a score for `order_by`.
        """
        if self.order_by is None:
            return examples
        names = judged_objectives(each.scores for example in examples for each in example.responses)
        if not names:
            return examples
        if self.order_by not in names:
            raise RowError(f"order_by {self.order_by!r} is not among its objectives {names}")
        return [
            replace(example, order_by=self.order_by)
            for example in examples
            if self.order_by in judged_objectives(each.scores for each in example.responses)
        ]


def _drawn(key: str) -> float:
    """A number in [0, 1) that depends on the key alone."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
    return (int.from_bytes(digest[:8], "little") >> 11) / 2**53


def judged_objectives(scores: Iterable[Mapping[str, float | None]]) -> list[str]:
    """The objectives with a score in any of these mappings."""
    judged = (name for each in scores for name, score in each.items() if score is not None)
    return list(dict.fromkeys(judged))


def conversation_key(*texts: str) -> str:
    """A short key that depends on the texts alone."""
    digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    return digest[:16]
