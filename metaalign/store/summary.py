"""Counts and histograms for a token store's manifest, added up over pieces of the index.

Reads no file. Its memory grows by two numbers for each example.
"""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from metaalign.template import TIERS

_SYSTEM, _USER = TIERS.index("system_info"), TIERS.index("user_info")
_PLACE = ("source_file", "source_row")
_MAX_TOO_LONG_LISTED = 20


class Summary:
    """Tallies over index tables of ENCODED_SCHEMA's columns.

    Args:
        context: Context in tokens. An example whose System Info, User Info and last query alone
            do not fit is counted as too long. None counts none.
    """

    def __init__(self, context: int | None = None) -> None:
        self.examples = 0
        self._context = context
        self._too_long = 0
        self._first_too_long: list[dict[str, Any]] = []
        self._counts: dict[str, Counter[str]] = {
            "split": Counter(), "recipe": Counter(), "source": Counter()
        }  # fmt: skip
        self._bins: dict[str, Counter[int]] = {tier: Counter() for tier in TIERS}
        self._tokens: Counter[str] = Counter()
        self._sequence_bins: Counter[int] = Counter()
        self._longest = self._sequences = self._once = 0
        self._meta_prompts: list[np.ndarray] = []
        self._meta_lengths: list[np.ndarray] = []

    def add(self, index: pa.Table) -> None:
        """Add the next rows of the index."""
        index = index.combine_chunks()
        self.examples += index.num_rows
        recipes = pc.map_lookup(_column(index, "tags"), "recipe", "first")  # pyright: ignore
        for name, values in (
            ("split", _column(index, "split")),
            ("recipe", recipes.drop_null()),
            ("source", _column(index, "source_file")),
        ):
            for each in pc.value_counts(values).to_pylist():  # pyright: ignore
                self._counts[name][each["values"]] += each["counts"]
        self._add_lengths(index)

    def _add_lengths(self, index: pa.Table) -> None:
        tiers, lengths = _flat(index, "segment_tiers"), _flat(index, "segment_lengths")
        responses = _flat(index, "response_lengths")
        for place, tier in enumerate(TIERS):
            self._add_bins(tier, lengths[tiers == place])
        self._add_bins("response", responses)
        prompts = _column(index, "prompt_length").to_numpy().astype(np.int64)
        answers = _column(index, "response_lengths").value_lengths().to_numpy()
        lengths_of_sequences = np.repeat(prompts, answers) + responses
        self._longest = max(self._longest, int(lengths_of_sequences.max(initial=0)))
        _tally(self._sequence_bins, lengths_of_sequences)
        self._once += int(prompts.sum() + responses.sum())
        self._sequences += int((prompts * answers).sum() + responses.sum())
        starts = _column(index, "segment_tiers").offsets.to_numpy()[:-1]
        system = tiers[starts] == _SYSTEM
        user = tiers[starts + system] == _USER  # a query follows, so this is a segment too
        meta = lengths[starts] * system + lengths[starts + system] * user
        ends = _column(index, "segment_tiers").offsets.to_numpy()[1:] - 1
        if self._context is not None:
            parts = (lengths[starts] * system, lengths[starts + system] * user, lengths[ends])
            self._add_too_long(index, np.stack(parts, axis=1), self._context)
        self._meta_prompts.append(_column(index, "meta_prompt").to_numpy())
        self._meta_lengths.append(meta.astype(np.int32))

    def _add_too_long(self, index: pa.Table, tiers: np.ndarray, context: int) -> None:
        """Count rows whose tiers do not fit the context.

        Args:
            tiers: (rows, 3) tokens of System Info, User Info and the last query.
        """
        long = np.flatnonzero(tiers.sum(axis=1) >= context)  # one more token opens the response
        self._too_long += len(long)
        for row in long[: _MAX_TOO_LONG_LISTED - len(self._first_too_long)].tolist():
            place = {name: _column(index, name)[row].as_py() for name in _PLACE}
            tokens_by_tier = dict(zip(TIERS[:3], tiers[row].tolist(), strict=True))
            self._first_too_long.append({**place, **tokens_by_tier})

    def too_long(self) -> dict[str, Any]:
        """How many examples have tiers that do not fit the context, and the first 20 of them."""
        if self._context is None:
            return {}
        return {"context": self._context, "count": self._too_long, "first": self._first_too_long}

    def _add_bins(self, tier: str, lengths: np.ndarray) -> None:
        self._tokens[tier] += int(lengths.sum())
        _tally(self._bins[tier], lengths)

    def counts(self) -> dict[str, dict[str, int]]:
        """Number of examples by split, recipe and source file."""
        return {name: dict(counter) for name, counter in self._counts.items()}

    def token_histogram(self) -> dict[str, dict[str, int]]:
        """For each tier, its number of tokens and how many segments have at most 2^k tokens."""
        return {
            tier: {
                "tokens": self._tokens[tier],
                **_ascending_counts(bins),
            }
            for tier, bins in self._bins.items()
        }

    def sequence_histogram(self) -> dict[str, int]:
        """How many sequences (a prompt and a response) have at most 2^k tokens, and the longest."""
        return {"longest": self._longest, **_ascending_counts(self._sequence_bins)}

    def meta_prompts(self) -> int:
        """Number of distinct pairs of System Info and User Info."""
        return len(np.unique(np.concatenate(self._meta_prompts)))

    def shared_prefix(self) -> dict[str, float]:
        """Share of all sequences' tokens that prefix sharing saves.

        `responses`: saved since the responses to a prompt share it. `meta_prompt`: in addition,
        saved since the examples of one meta-prompt share their System Info and User Info.
        """
        hashes, lengths = map(np.concatenate, (self._meta_prompts, self._meta_lengths))
        first = np.unique(hashes, return_index=True)[1]
        repeated = int(lengths.sum(dtype=np.int64) - lengths[first].sum(dtype=np.int64))
        saved = self._sequences - self._once
        return {
            "responses": saved / self._sequences,
            "meta_prompt": (saved + repeated) / self._sequences,
        }


def _tally(bins: Counter[int], lengths: np.ndarray) -> None:
    powers, counts = np.unique(np.ceil(np.log2(np.maximum(lengths, 1))), return_counts=True)
    for power, count in zip(powers, counts, strict=True):
        bins[2 ** int(power)] += int(count)


def _ascending_counts(bins: Counter[int]) -> dict[str, int]:
    return {str(most): bins[most] for most in sorted(bins)}


def _column(index: pa.Table, name: str) -> Any:
    """A column as one array, also if the table has no rows."""
    column = index.column(name)
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)


def _flat(index: pa.Table, name: str) -> np.ndarray:
    return _column(index, name).flatten().to_numpy().astype(np.int64)
