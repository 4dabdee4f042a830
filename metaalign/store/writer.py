"""Builds a token store: tasks write shards, and `StoreWriter.finish` joins them.

Imports neither users' file formats nor Ray. Tasks may write in any order and in any process. The
examples of the store are in the order of the parts' numbers:

    .store.building-1a2b3c4d/
      tokens-000003-00000.arrow   the first shard of part 3
      index-000003-00000.arrow    its index rows; `finish` joins all such pieces into one index
"""

import json
import os
import shutil
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from metaalign.errors import DataError
from metaalign.folders import whole_file
from metaalign.store.encoder import ENCODED_SCHEMA, Encoded
from metaalign.store.summary import Summary
from metaalign.store.token_store import (
    INDEX_FILE,
    INDEX_SCHEMA,
    MANIFEST_FILE,
    SCHEMA_VERSION,
    TOKENIZER_FOLDER,
    TokenStore,
    map_table,
)
from metaalign.template import Template

_DAY_S = 24 * 3600
_REPLACED = "-replaced"
_SHARD_TOKENS = 1 << 22
_TOKENS_SCHEMA = pa.schema([("tokens", pa.int32())])


class ShardWriter:
    """Writes one part's examples as shards of about 4 million tokens (16 MB).

    A shard appears only once it is complete, and the same part always gives the same files, so a
    task can be run again.
    """

    def __init__(self, folder: str | Path, part: int) -> None:
        self._folder, self._part = Path(folder), part
        self._shards = self._held = 0
        self._tokens: list[np.ndarray] = []
        self._index: list[pa.Table] = []

    def add(self, encoded: Encoded) -> None:
        """Add the part's next examples. Writes a shard once enough tokens are held."""
        if not encoded.index.num_rows:
            return
        place = encoded.index.schema.get_field_index("offset")
        moved = pc.add(encoded.index.column(place), self._held)  # pyright: ignore
        self._index.append(encoded.index.set_column(place, ENCODED_SCHEMA.field(place), moved))
        self._tokens.append(encoded.tokens)
        self._held += len(encoded.tokens)
        if self._held >= _SHARD_TOKENS:
            self.close()

    def close(self) -> None:
        """Write the examples that are still held as a shard."""
        if not self._index:
            return
        name = f"{self._part:06d}-{self._shards:05d}.arrow"
        tokens = pa.table([pa.array(np.concatenate(self._tokens))], schema=_TOKENS_SCHEMA)
        _write_table(self._folder / f"tokens-{name}", tokens)
        index = pa.concat_tables(self._index).combine_chunks()
        _write_table(self._folder / f"index-{name}", index)
        self._shards, self._held = self._shards + 1, 0
        self._tokens.clear()
        self._index.clear()


class StoreWriter:
    """Builds a store in a folder beside `path`; `finish` renames it to `path`.

    Call `add` in this process. Tasks in other processes use a `ShardWriter` on `folder` instead.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for left in self.path.parent.glob(f".{self.path.name}.building-*"):  # of a killed job
            self._restore_or_remove(left)
        self.folder = self.path.with_name(f".{self.path.name}.building-{uuid.uuid4().hex[:8]}")
        self.folder.mkdir()
        self._added = 0

    def _restore_or_remove(self, left: Path) -> None:
        """Restore a store that a killed job was about to replace. Remove what is a day old."""
        if left.name.endswith(_REPLACED) and not self.path.exists():
            os.replace(left, self.path)
        elif time.time() - max(each.stat().st_mtime for each in [left, *left.glob("*/")]) > _DAY_S:
            shutil.rmtree(left, ignore_errors=True)

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the folder if the store was not finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, encoded: Encoded) -> None:
        """Write a shard of examples, which come after those of all earlier calls."""
        shards = ShardWriter(self.folder, self._added)
        shards.add(encoded)
        shards.close()
        self._added += 1

    def finish(
        self,
        template: Template,
        *,
        fingerprint: str,
        ledger: Sequence[dict[str, Any]] = (),
        teachers: Mapping[str, Any] | None = None,
        context: int | None = None,
    ) -> TokenStore:
        """Write tokenizer, index and manifest, move the store to `path`, and open it.

        Args:
            ledger: Rows in, examples out and rows quarantined, one dict for each source.
            teachers: Requests, failures and cost of each teacher.
            context: Context in tokens. The manifest counts the examples whose tiers alone do not
                fit. None counts none.

        Raises:
            DataError: the store has no example, or `path` exists and is no token store.
        """
        summary = Summary(context)
        shards = self._join_index(summary)
        template.save(self.folder / TOKENIZER_FOLDER)
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "fingerprint": fingerprint,
            "template_fingerprint": template.fingerprint,
            "shards": shards,
            "counts": summary.counts(),
            "meta_prompts": summary.meta_prompts(),
            "token_histogram": summary.token_histogram(),
            "sequence_histogram": summary.sequence_histogram(),
            "shared_prefix": summary.shared_prefix(),
            "ledger": list(ledger),
            "teachers": dict(teachers or {}),
            "too_long": summary.too_long(),
        }
        for left in self.folder.rglob("*.part"):  # of tasks that were killed
            left.unlink()
        _write_json(self.folder / "ledger.json", list(ledger))
        _write_json(self.folder / MANIFEST_FILE, manifest)
        self._put_in_place()
        return TokenStore.open(self.path)

    def _join_index(self, summary: Summary) -> list[str]:
        """Join all pieces into one index, and return the shards' names in its order."""
        shards = []
        pieces = sorted(self.folder.glob("index-*.arrow"))
        if not pieces:
            raise DataError(f"{self.path}: no example is left to put into the token store")
        with pa.ipc.new_file(self.folder / INDEX_FILE, INDEX_SCHEMA) as file:
            for number, piece in enumerate(pieces):
                rows = map_table(piece)
                shard = pa.array(np.full(rows.num_rows, number, np.int32))
                file.write_table(rows.add_column(0, INDEX_SCHEMA.field(0), shard))
                summary.add(rows)
                shards.append(piece.name.replace("index-", "tokens-"))
                piece.unlink()
        return shards

    def _put_in_place(self) -> None:
        if self.path.exists() and not (self.path / MANIFEST_FILE).exists():
            raise DataError(
                f"{self.path}: the folder exists but holds no token store; remove it, or give "
                "another `output`"
            )
        if self.path.exists():
            replaced = self.folder.with_name(self.folder.name + _REPLACED)
            os.replace(self.path, replaced)
            os.replace(self.folder, self.path)
            shutil.rmtree(replaced)
        else:
            os.replace(self.folder, self.path)


def _write_table(file: Path, table: pa.Table) -> None:
    """Write a file atomically, even if two tasks write it at once."""
    with whole_file(file) as unfinished, pa.ipc.new_file(unfinished, table.schema) as stream:
        stream.write_table(table)


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
