"""Example -> token ids. Each distinct segment is encoded once.

Uses the template and `Example`; writes no file. Dimensions: N = examples, K = responses.
"""

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import numpy as np
import pyarrow as pa

from metaalign.examples import TRAIN, Example
from metaalign.store.round_trip import RoundTrip
from metaalign.template import TIERS, Segment, Template, prompt_segments

_CACHED_CHARACTERS = 1_000_000
"""Characters of text in each of an encoder's two caches, of newer and of older segments. This is
enough for repeated segments and keeps memory small."""

ENCODED_SCHEMA = pa.schema(
    [
        ("offset", pa.int64()),
        ("prompt_length", pa.int32()),
        ("segment_tiers", pa.list_(pa.int8())),
        ("segment_lengths", pa.list_(pa.int32())),
        ("response_lengths", pa.list_(pa.int32())),
        ("objectives", pa.list_(pa.string())),
        ("scores", pa.list_(pa.list_(pa.float64()))),
        ("order_by", pa.string()),
        ("desirable", pa.list_(pa.bool_())),
        ("weight", pa.float64()),
        ("margin", pa.float64()),
        ("meta_prompt", pa.int64()),
        ("conversation", pa.int64()),
        ("split", pa.string()),
        ("tags", pa.map_(pa.string(), pa.string())),
        ("source_file", pa.string()),
        ("source_row", pa.int64()),
    ]
)
"""Columns of the token store's index, without the shard that holds the example.

offset: where the example's tokens begin in its shard: its prompt, then each response.
segment_tiers, segment_lengths: index in TIERS and number of tokens of each segment of the prompt.
    The lengths sum to prompt_length - 1, since the control token that opens the response belongs
    to no segment.
response_lengths: (K,) tokens, including the end token.
scores: (K, objectives); null if the response was not judged.
"""


@dataclass(frozen=True)
class Encoded:
    """Examples as token ids: one flat array of tokens, and one index row for each example."""

    tokens: np.ndarray
    """(T,) int32."""

    index: pa.Table
    """(N,) rows of ENCODED_SCHEMA; offsets count from the start of `tokens`."""


@lru_cache(maxsize=10_000)
def stable_hash(*texts: str) -> int:
    """A signed 64-bit hash, the same in every process. ("a", "b") and ("ab", "") differ."""
    digest = hashlib.blake2b(digest_size=8)
    for text in texts:
        encoded = text.encode("utf-8")
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return int.from_bytes(digest.digest(), "little", signed=True)


NO_META_PROMPT = stable_hash("", "")
"""The index's `meta_prompt` of an example with neither System Info nor User Info."""


_CHECKED_ROWS, _CHECKED_EVERY = 100, 50
"""The round trip of texts is checked for a file's first rows and for every 50th of the others. The
choice depends on the row alone, so it is the same however a file is cut into parts."""


class SegmentEncoder:
    """Encodes examples with one template and caches the ids of segments."""

    def __init__(self, template: Template) -> None:
        self.template = template
        self._ids: dict[str, bytes] = {}
        self._older: dict[str, bytes] = {}
        self._characters = 0
        self._openings = [
            {tier: _packed(template.opening(tier, first=first)) for tier in TIERS}
            for first in (False, True)
        ]
        self._closings = {tier: _packed(template.closing(tier)) for tier in TIERS}

    def encode(self, examples: Sequence[Example], round_trip: RoundTrip | None = None) -> Encoded:
        """Token ids and index rows of valid examples, in the order given.

        Args:
            round_trip: If given, checks that their texts decode to themselves.
        """
        prompts = [_segments(example) for example in examples]
        texts = [
            *(segment.text for prompt in prompts for segment in prompt),
            *(response.text for example in examples for response in example.responses),
        ]
        self._fill_cache(*texts)
        if round_trip is not None:
            for example, prompt in zip(examples, prompts, strict=True):
                if example.source.row < _CHECKED_ROWS or example.source.row % _CHECKED_EVERY == 0:
                    round_trip.take((segment.text for segment in prompt), self._ids)
                    round_trip.take((each.text for each in example.responses), self._ids)
        runs: list[bytes] = []
        rows = [
            self._row(example, prompt, runs)
            for example, prompt in zip(examples, prompts, strict=True)
        ]
        sizes = [row["prompt_length"] + sum(row["response_lengths"]) for row in rows]
        columns = {name: [row[name] for row in rows] for name in ENCODED_SCHEMA.names[1:]}
        columns["offset"] = list(accumulate(sizes, initial=0))[:-1]
        arrays = [pa.array(columns[field.name], field.type) for field in ENCODED_SCHEMA]
        index = pa.Table.from_arrays(arrays, schema=ENCODED_SCHEMA)
        return Encoded(tokens=np.frombuffer(b"".join(runs), dtype=np.int32), index=index)

    def _fill_cache(self, *texts: str) -> None:
        """Put the ids of these texts into the cache, and drop those that were not used lately."""
        if self._characters > _CACHED_CHARACTERS:
            self._ids, self._older, self._characters = {}, self._ids, 0
        wanted = [text for text in dict.fromkeys(texts) if text not in self._ids]
        new = [text for text in wanted if text not in self._older]
        self._ids.update((text, self._older[text]) for text in wanted if text in self._older)
        self._ids.update(zip(new, map(_packed, self.template.encode_texts(new)), strict=True))
        self._characters += sum(map(len, wanted))

    def _row(self, example: Example, prompt: list[Segment], runs: list[bytes]) -> dict:
        """An example's row of the index, without its offset. Appends its tokens to `runs`."""
        lengths = []
        for place, segment in enumerate(prompt):
            own = (
                self._openings[not place][segment.tier],
                self._ids[segment.text],
                self._closings[segment.tier],
            )
            runs += own
            lengths.append(_length(own))
        opening = self._openings[False]["response"]
        runs.append(opening)
        answers = [
            (self._ids[response.text], self._closings["response"]) for response in example.responses
        ]
        for answer in answers:
            runs += answer
        return {
            "prompt_length": sum(lengths) + _length([opening]),
            "segment_tiers": [TIERS.index(segment.tier) for segment in prompt],
            "segment_lengths": lengths,
            "response_lengths": [_length(answer) for answer in answers],
            **_judgements(example),
            "meta_prompt": stable_hash(example.system_info, example.user_info),
            "conversation": stable_hash(example.conversation or example.turns[0].text),
            "split": example.tags.get("split", TRAIN),
            "tags": list(example.tags.items()),
            "source_file": example.source.file,
            "source_row": example.source.row,
        }


def _packed(ids: Sequence[int]) -> bytes:
    """Token ids as the bytes of a shard."""
    return array("i", ids).tobytes()


def _length(runs: Iterable[bytes]) -> int:
    """Number of tokens in packed runs."""
    return sum(map(len, runs)) // 4


def _segments(example: Example) -> list[Segment]:
    return prompt_segments(
        system_info=example.system_info, user_info=example.user_info, turns=example.turns
    )


def _judgements(example: Example) -> dict:
    objectives = list(dict.fromkeys(name for each in example.responses for name in each.scores))
    return {
        "objectives": objectives,
        "scores": [[each.scores.get(name) for name in objectives] for each in example.responses],
        "order_by": example.order_by,
        "desirable": [response.desirable for response in example.responses],
        "weight": example.weight,
        "margin": example.margin,
    }
