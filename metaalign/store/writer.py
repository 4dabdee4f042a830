"""A token store while it is built: shards that tasks write, put together at the end.

Knows no file format of users and no Ray. Tasks may write in any order and in any process; the
store's order is that of the parts' numbers:

    .store.building-1a2b3c4d/
      tokens-000003-00000.arrow   the first shard of part 3
      index-000003-00000.arrow    its examples, until `finish` puts all such pieces into one index
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

    A shard is there as a whole or not at all, and the same part gives the same files, so that a
    task may be run again.
    """

    def __init__(self, folder: str | Path, part: int) -> None:
        self._folder, self._part = Path(folder), part
        self._shards = self._held = 0
        self._tokens: list[np.ndarray] = []
        self._index: list[pa.Table] = []

    def add(self, encoded: Encoded) -> None:
        """Take the part's next examples."""
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
        """Write what is held as a shard."""
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
    """Builds a store in a sibling folder; `finish` puts it in place in one rename.

    `add` may be called in this process; tasks elsewhere use a `ShardWriter` on `folder` instead.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for left in self.path.parent.glob(f".{self.path.name}.building-*"):  # by a killed job
            self._take_back_or_remove(left)
        self.folder = self.path.with_name(f".{self.path.name}.building-{uuid.uuid4().hex[:8]}")
        self.folder.mkdir()
        self._added = 0

    def _take_back_or_remove(self, left: Path) -> None:
        """A store that a job was about to replace when it was killed, or what is a day old."""
        if left.name.endswith(_REPLACED) and not self.path.exists():
            os.replace(left, self.path)
        elif time.time() - max(each.stat().st_mtime for each in [left, *left.glob("*/")]) > _DAY_S:
            shutil.rmtree(left, ignore_errors=True)

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, *_: object) -> None:
        """Remove what was built and not finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, encoded: Encoded) -> None:
        """Write one shard of examples, which follow all earlier ones in the store's order."""
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
        """Write tokenizer, index and manifest, put the store in place, and open it.

        Args:
            ledger: Rows in, examples out and rows quarantined, one dict a source.
            teachers: What was asked of each teacher, and its cost.
            context: Tokens above which an example's tiers alone are told to be too long.

        Raises:
            DataError: there is no example.
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
        """One index of all pieces, in the store's order; the shards' names in that order."""
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
                f"{self.path}: the folder exists and holds no token store; remove it, or give "
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
    """Whole or not at all, also where two tasks write the same file at once."""
    with whole_file(file) as unfinished, pa.ipc.new_file(unfinished, table.schema) as stream:
        stream.write_table(table)


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
