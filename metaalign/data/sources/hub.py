"""Loads data sets of the Hugging Face library on the driver, and writes them as Parquet for tasks.

Tasks on other nodes cannot read the cache that the driver loads into.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow as pa
from datasets.exceptions import DatasetsError

from metaalign.config.prepare import DatasetConfig
from metaalign.data.sources.records import Record, table_records
from metaalign.errors import DataError

_ROWS_A_GROUP = 1_000
_ROWS_AT_ONCE = 100
"""Number of rows in memory where the first ones may be enough, as to detect the format."""


def load(config: DatasetConfig) -> datasets.Dataset:
    """Load a split from the hub, a folder of data files, or a folder that `save_to_disk` wrote.

    Raises:
        DataError: the data set, configuration or split does not exist or cannot be read.
    """
    try:
        if _is_saved(Path(config.name)):
            found = _saved_split(config)
        else:
            found = datasets.load_dataset(
                config.name, config.config, split=config.split, revision=config.revision
            )
    except (OSError, ValueError, LookupError, RuntimeError, DatasetsError) as error:
        raise DataError(f"dataset {config.name!r}: {error}") from error  # RuntimeError of a script
    assert isinstance(found, datasets.Dataset)
    return found


def dataset_records(dataset: datasets.Dataset) -> Iterator[Record]:
    """All rows, as the Parquet file gives them. A bad value affects only its own row."""
    row = 0
    for table in dataset.with_format("arrow").iter(batch_size=_ROWS_AT_ONCE):
        (batch,) = table.combine_chunks().to_batches()  # pyright: ignore
        yield from table_records(row, batch)
        row += batch.num_rows


def _is_saved(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _saved_split(config: DatasetConfig) -> datasets.Dataset:
    found = datasets.load_from_disk(config.name)
    if isinstance(found, datasets.Dataset):
        if str(found.split or config.split) != config.split:
            raise ValueError(f"it holds the split {str(found.split)!r}, not {config.split!r}")
        return found
    if config.split not in found:
        raise ValueError(f"it has no split {config.split!r}; it has {', '.join(map(str, found))}")
    return found[config.split]


def content_identity(config: DatasetConfig) -> str:
    """The data set's name and the fingerprint of its current content."""
    return f"{name_of(config)} {fingerprint(load(config))}"


def name_of(config: DatasetConfig) -> str:
    """The name under which a data set is shown in errors and sources."""
    parts = [config.name, config.config, config.split, config.revision]
    return "/".join(["datasets", *(part.strip("/") for part in parts if part)])


def fingerprint(dataset: datasets.Dataset) -> str:
    """The sha256 of a data set's columns and of all values in their Arrow layout.

    The same files give the same fingerprint in every process. The same rows in other files may
    give another. A process caches it as long as the files do not change.
    """
    files = [Path(each["filename"]) for each in dataset.cache_files]
    state = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    # The library's own fingerprint distinguishes data sets derived from the same files, but it
    # differs for a copy of the same rows.
    known = (dataset._fingerprint, *state)
    if not state or known not in _FOUND:
        _FOUND[known] = _content_fingerprint(dataset)
    return _FOUND[known]


_FOUND: dict[tuple[object, ...], str] = {}


def _content_fingerprint(dataset: datasets.Dataset) -> str:
    digest = hashlib.sha256(str(dataset.features).encode())
    for rows in dataset.with_format("arrow").iter(batch_size=_ROWS_A_GROUP):
        table = rows.combine_chunks()  # pyright: ignore[reportAttributeAccessIssue]
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema.remove_metadata()) as stream:
            stream.write_table(table.replace_schema_metadata(None))
        digest.update(sink.getvalue())
    return digest.hexdigest()


def write(dataset: datasets.Dataset, file: Path) -> None:
    """Write all rows to a Parquet file."""
    dataset.to_parquet(file, batch_size=_ROWS_A_GROUP)
