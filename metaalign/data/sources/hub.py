"""Data sets of the Hugging Face library: loaded on the driver, handed to tasks as Parquet.

Tasks on other nodes do not see the cache that the driver loads into.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow as pa
from datasets.exceptions import DatasetsError

from metaalign.config.prepare import DatasetConfig
from metaalign.data.sources.arrow_values import UNREADABLE
from metaalign.data.sources.records import Record, table_records
from metaalign.errors import DataError

_ROWS_A_GROUP = 1_000
_ROWS_LOOKED_AT = 100
"""Rows that the format is told of, before any task reads one."""


def load(config: DatasetConfig) -> datasets.Dataset:
    """The rows of a split, from the hub, a folder of data files, or what `save_to_disk` wrote.

    Raises:
        DataError: there is no such data set, configuration or split, or it cannot be read.
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


def first_records(dataset: datasets.Dataset) -> Iterator[Record]:
    """The first rows, as they are read of the Parquet file; a bad value is its own row's."""
    for table in dataset.with_format("arrow").iter(batch_size=_ROWS_LOOKED_AT):
        (batch,) = table.combine_chunks().to_batches()  # pyright: ignore
        yield from table_records(0, batch)
        return


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


def told(config: DatasetConfig) -> str:
    """Its name and what it holds now."""
    return f"{name_of(config)} {fingerprint(load(config))}"


def name_of(config: DatasetConfig) -> str:
    """As it is shown."""
    parts = [config.name, config.config, config.split, config.revision]
    return "/".join(["datasets", *(part.strip("/") for part in parts if part)])


def fingerprint(dataset: datasets.Dataset) -> str:
    """sha256 of its columns and all of its values; of one that cannot be read, of the reason."""
    digest = hashlib.sha256(str(dataset.features).encode())
    for batch in dataset.with_format("arrow").iter(batch_size=1_000):
        table = batch.combine_chunks()  # pyright: ignore[reportAttributeAccessIssue]
        for column in table.columns:
            digest.update(_told(column).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _told(column: pa.ChunkedArray) -> str:
    try:
        return repr(column.to_pylist())
    except UNREADABLE:
        return repr([*map(_value, column)])


def _value(value: pa.Scalar) -> object:
    try:
        return value.as_py()
    except UNREADABLE as error:
        return error


def write(dataset: datasets.Dataset, file: Path) -> None:
    """All rows as a Parquet file."""
    dataset.to_parquet(file, batch_size=_ROWS_A_GROUP)
