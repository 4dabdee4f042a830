"""The token store: flat shards of token ids, an index, a manifest. `writer` builds it.

Imports neither users' file formats nor Ray. A finished store:

    store/
      manifest.json          written last: its presence says that the store is complete
      index.arrow            one row for each example: where its tokens are, its scores and tags
      tokens-*.arrow         one int32 column: for each example its prompt, then its responses
      tokenizer/             the tokenizer and template.json
      ledger.json            rows in, examples out, rows quarantined, by source
      quarantine/            bad rows: file, row, reason (only if there are any)
      cases.jsonl            held-out cases for the evaluation (only with recipes)
"""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from metaalign.errors import DataError
from metaalign.store.columns import Columns, index_columns
from metaalign.store.encoder import ENCODED_SCHEMA
from metaalign.template import Template

__all__ = ["Columns", "TokenStore"]

SCHEMA_VERSION = 1
INDEX_SCHEMA = pa.schema([("shard", pa.int32()), *ENCODED_SCHEMA])
MANIFEST_FILE, INDEX_FILE = "manifest.json", "index.arrow"
TOKENIZER_FOLDER = "tokenizer"
CASES_FILE = "cases.jsonl"


class TokenStore:
    """A finished store, mapped into memory. Token arrays are views of the files, not copies.

    Attributes:
        path: The store's folder.
        manifest: schema_version, fingerprint, template_fingerprint, counts, meta_prompts,
            token_histogram, sequence_histogram, shared_prefix, ledger.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], index: pa.Table) -> None:
        self.path = path
        self.manifest = manifest
        self._index = index
        names = manifest["shards"]
        self._tokens = [map_table(path / name).column("tokens").to_numpy() for name in names]

    @classmethod
    def open(cls, path: str | Path) -> "TokenStore":
        """Map a finished store.

        Raises:
            DataError: there is no store, or it is incomplete, damaged or of another format version.
        """
        path = Path(path)
        file = path / MANIFEST_FILE
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
            index = map_table(path / INDEX_FILE)
            if not index.schema.equals(INDEX_SCHEMA):
                raise ValueError(f"the columns of {INDEX_FILE} are not the expected ones")
            return cls(path, manifest, index)
        except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are ValueErrors
            raise DataError(
                f"{path}: the token store is damaged: {error}; remove the folder and prepare it "
                "again"
            ) from error

    def __len__(self) -> int:
        return self._index.num_rows

    @cached_property
    def columns(self) -> Columns:
        """The index as numpy arrays, converted on first use."""
        return index_columns(self._index)

    @cached_property
    def _shard(self) -> np.ndarray:
        return self._index.column("shard").to_numpy()

    @cached_property
    def _offset(self) -> np.ndarray:
        return self._index.column("offset").to_numpy()

    @cached_property
    def _response_offset(self) -> np.ndarray:
        """(R + 1,) number of tokens of all responses before each one."""
        return np.concatenate([[0], np.cumsum(self.columns.response_length)])

    def prompt(self, example: int) -> np.ndarray:
        """(prompt_length,) int32 tokens; the last one opens the response. A view, not a copy."""
        start = self._offset[example]
        return self._tokens[self._shard[example]][start : start + self._prompt_length(example)]

    def response(self, example: int, position: int) -> np.ndarray:
        """(response_length,) int32 tokens of one response, including its end token. A view."""
        if not 0 <= position < self.columns.response_count[example]:
            raise IndexError(f"example {example} has no response {position}")
        first = self.columns.response_start[example]
        before = self._response_offset[first + position] - self._response_offset[first]
        start = self._offset[example] + self._prompt_length(example) + before
        length = self.columns.response_length[first + position]
        return self._tokens[self._shard[example]][start : start + length]

    def _prompt_length(self, example: int) -> int:
        return self.columns.prompt_length[example]

    def subset(self, examples: Sequence[int]) -> "TokenStore":
        """A store of only these examples, numbered from 0. Does not read the whole index."""
        rows = [self._index.slice(example, 1) for example in examples]  # take copies whole columns
        index = pa.concat_tables([self._index.slice(0, 0), *rows])
        return TokenStore(self.path, self.manifest, index)

    def tags(self, example: int) -> dict[str, str]:
        """An example's tags: recipe, family, conflict type, split and the tags of its file."""
        return dict(self._index.column("tags")[example].as_py())

    @property
    def fingerprint(self) -> str:
        """The same for stores that were prepared from the same input in the same way."""
        return self.manifest["fingerprint"]

    @cached_property
    def template(self) -> Template:
        """The template that the store was encoded with.

        Raises:
            TemplateError: the store's tokenizer has changed since.
        """
        return Template.verify(self.path / TOKENIZER_FOLDER)


def map_table(file: Path) -> pa.Table:
    """Open an Arrow file as a memory-mapped table."""
    with pa.memory_map(str(file)) as source:
        return pa.ipc.open_file(source).read_all()
