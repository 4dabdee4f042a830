"""The token store: flat shards of token ids, an index, a manifest. Written once, then mapped.

Knows no file format of users and no Ray. A finished store:

    store/
      manifest.json          written last: its presence says that the store is complete
      index.arrow            one row an example: where its tokens lie and how it was judged
      tokens-00000.arrow     one int32 column; of each example its prompt, then each response
      tokenizer/             the tokenizer and template.json
      ledger.json            rows in, examples out, rows quarantined, by source
      quarantine/            bad rows: file, row, reason (only where there were any)
      cases.jsonl            held-out cases for the evaluation (only with recipes)
"""

import json
import os
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from metaalign.data.columns import Columns, index_columns
from metaalign.data.tokens import ENCODED_SCHEMA, Encoded
from metaalign.errors import DataError
from metaalign.template import TIERS, Template

__all__ = ["Columns", "StoreWriter", "TokenStore", "write_shard"]

SCHEMA_VERSION = 1
INDEX_SCHEMA = pa.schema([("shard", pa.int32()), *ENCODED_SCHEMA])
TOKENIZER_FOLDER = "tokenizer"
CASES_FILE = "cases.jsonl"

_ABANDONED_S = 24 * 3600
_TOKENS_SCHEMA = pa.schema([("tokens", pa.int32())])


class TokenStore:
    """A finished store, mapped into memory. Reading a token array copies nothing.

    Attributes:
        path: The store's folder.
        manifest: schema_version, fingerprint, template_fingerprint, counts, histogram, ledger.
        columns: The index as numpy arrays.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], index: pa.Table) -> None:
        self.path = path
        self.manifest = manifest
        self._index = index
        self._shard = index.column("shard").to_numpy()
        self._offset = index.column("offset").to_numpy()
        self.columns = index_columns(index)
        names = manifest["shards"]
        self._tokens = [_map_table(path / name).column("tokens").to_numpy() for name in names]
        ends = self.columns.response_start
        self._response_offset = np.concatenate([[0], np.cumsum(self.columns.response_length)])
        self._first_response = ends[:-1]

    @classmethod
    def open(cls, path: str | Path) -> "TokenStore":
        """Map a finished store.

        Raises:
            DataError: there is none, it is incomplete, or of another format version.
        """
        path = Path(path)
        file = path / "manifest.json"
        try:
            manifest = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            found = "holds no finished token store" if path.is_dir() else "does not exist"
            raise DataError(
                f"{path}: the folder {found}; run the prepare job first, or name another `store`"
            ) from error
        except (OSError, ValueError) as error:
            raise DataError(
                f"{file} cannot be read: {error}; remove the folder and prepare it again"
            ) from error
        if manifest.get("schema_version") != SCHEMA_VERSION:
            raise DataError(
                f"{path}: the token store has format version {manifest.get('schema_version')!r}, "
                f"expected {SCHEMA_VERSION}; prepare it again"
            )
        try:
            return cls(path, manifest, _map_table(path / "index.arrow"))
        except (OSError, pa.ArrowInvalid, KeyError) as error:
            raise DataError(
                f"{path}: the token store is damaged: {error}; remove the folder and prepare it "
                "again"
            ) from error

    def __len__(self) -> int:
        return len(self._offset)

    def prompt(self, example: int) -> np.ndarray:
        """(prompt_length,) int32 tokens, the last one opens the response. A view, not a copy."""
        start = self._offset[example]
        return self._tokens[self._shard[example]][start : start + self._prompt_length(example)]

    def response(self, example: int, position: int) -> np.ndarray:
        """(response_length,) int32 tokens of one response, its end token included. A view."""
        if not 0 <= position < self.columns.response_count[example]:
            raise IndexError(f"example {example} has no response {position}")
        first = self._first_response[example]
        before = self._response_offset[first + position] - self._response_offset[first]
        start = self._offset[example] + self._prompt_length(example) + before
        length = self.columns.response_length[first + position]
        return self._tokens[self._shard[example]][start : start + length]

    def _prompt_length(self, example: int) -> int:
        return self.columns.prompt_length[example]

    def tags(self, example: int) -> dict[str, str]:
        """An example's tags: recipe, family, conflict type, split and whatever its file gave."""
        return dict(self._index.column("tags")[example].as_py())

    @property
    def fingerprint(self) -> str:
        """Equal for stores that were prepared from the same input in the same way."""
        return self.manifest["fingerprint"]

    @cached_property
    def template(self) -> Template:
        """The template that the store was encoded with.

        Raises:
            TemplateError: the store's tokenizer was changed.
        """
        return Template.verify(self.path / TOKENIZER_FOLDER)


class StoreWriter:
    """Builds a store in a sibling folder; `finish` puts it in place in one rename.

    `add` may be called in this process; tasks elsewhere call `write_shard` on `folder` instead and
    hand the index rows that it returns to `add_index`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for left in self.path.parent.glob(f".{self.path.name}.building-*"):  # by a killed job
            if time.time() - left.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(left, ignore_errors=True)
        self.folder = self.path.with_name(f".{self.path.name}.building-{uuid.uuid4().hex[:8]}")
        self.folder.mkdir()
        self._parts: list[pa.Table] = []

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, *_: object) -> None:
        """Remove what was built and not finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, encoded: Encoded) -> None:
        """Write one shard of examples, which follow all earlier ones in the store's order."""
        self.add_index(write_shard(self.folder, encoded))

    def add_index(self, index: pa.Table) -> None:
        """Take rows that `write_shard` returned, in the store's order."""
        self._parts.append(index)

    def finish(
        self, template: Template, *, fingerprint: str, ledger: Sequence[dict[str, Any]] = ()
    ) -> TokenStore:
        """Write tokenizer, index and manifest, put the store in place, and open it.

        Args:
            ledger: Rows in, examples out and rows quarantined, one dict a source.

        Raises:
            DataError: there is no example.
        """
        index = pa.concat_tables(self._parts) if self._parts else pa.table({"shard": []})
        if not index.num_rows:
            raise DataError(f"{self.path}: no example is left to put into the token store")
        names, index = self._number_shards(index)
        template.save(self.folder / TOKENIZER_FOLDER)
        with pa.ipc.new_file(self.folder / "index.arrow", INDEX_SCHEMA) as file:
            file.write_table(index.combine_chunks())
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "fingerprint": fingerprint,
            "template_fingerprint": template.fingerprint,
            "shards": names,
            "counts": _counts(index),
            "token_histogram": _histogram(index_columns(index)),
            "ledger": list(ledger),
        }
        _write_json(self.folder / "ledger.json", list(ledger))
        _write_json(self.folder / "manifest.json", manifest)
        self._put_in_place()
        return TokenStore.open(self.path)

    def _number_shards(self, index: pa.Table) -> tuple[list[str], pa.Table]:
        """Name the shards by the order in which the store visits them."""
        encoded = pc.dictionary_encode(index.column("shard").combine_chunks())  # pyright: ignore
        names = []
        for number, written in enumerate(encoded.dictionary.to_pylist()):
            names.append(f"tokens-{number:05d}.arrow")
            os.replace(self.folder / written, self.folder / names[-1])
        numbered = index.drop_columns("shard").add_column(
            0, "shard", encoded.indices.cast(pa.int32())
        )
        for orphan in self.folder.glob("part-*.arrow"):  # of tasks that were run twice
            orphan.unlink()
        return names, numbered.cast(INDEX_SCHEMA)

    def _put_in_place(self) -> None:
        if self.path.exists() and not (self.path / "manifest.json").exists():
            raise DataError(
                f"{self.path}: the folder exists and holds no token store; remove it, or give "
                "another `output`"
            )
        if self.path.exists():
            replaced = self.folder.with_name(self.folder.name + "-replaced")
            os.replace(self.path, replaced)
            os.replace(self.folder, self.path)
            shutil.rmtree(replaced)
        else:
            os.replace(self.folder, self.path)


def write_shard(folder: str | Path, encoded: Encoded) -> pa.Table:
    """Write the tokens to a shard of its own; returns the index rows, which name that file."""
    name = f"part-{uuid.uuid4().hex}.arrow"
    tokens = pa.record_batch([pa.array(encoded.tokens, pa.int32())], schema=_TOKENS_SCHEMA)
    with pa.ipc.new_file(Path(folder) / name, _TOKENS_SCHEMA) as file:
        file.write_batch(tokens)
    names = pa.array([name] * encoded.index.num_rows, pa.string())
    return encoded.index.add_column(0, "shard", names)


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _map_table(file: Path) -> pa.Table:
    with pa.memory_map(str(file)) as source:
        return pa.ipc.open_file(source).read_all()


def _counts(index: pa.Table) -> dict[str, dict[str, int]]:
    tags = [dict(tags) for tags in index.column("tags").to_pylist()]
    return {
        "split": dict(Counter(index.column("split").to_pylist())),
        "recipe": dict(Counter(tag["recipe"] for tag in tags if "recipe" in tag)),
        "source": dict(Counter(index.column("source_file").to_pylist())),
    }


def _histogram(columns: Columns) -> dict[str, dict[str, int]]:
    """Tokens by tier: how many in all, and how many segments have at most 2^k tokens."""
    lengths = {
        tier: columns.segment_length[columns.segment_tier == place]
        for place, tier in enumerate(TIERS)
    }
    lengths["response"] = np.concatenate([lengths["response"], columns.response_length])
    return {tier: _bins(values) for tier, values in lengths.items()}


def _bins(lengths: np.ndarray) -> dict[str, int]:
    powers, counts = np.unique(np.ceil(np.log2(np.maximum(lengths, 1))), return_counts=True)
    bins = {str(2 ** int(power)): int(n) for power, n in zip(powers, counts, strict=True)}
    return {"tokens": int(lengths.sum()), **bins}
