"""Data sets of the Hugging Face library: loaded on the driver, handed to tasks as Parquet.

Tasks on other nodes do not see the cache that the driver loads into.
"""

import hashlib
from pathlib import Path

import datasets
from datasets.exceptions import DatasetsError

from metaalign.config.prepare import DatasetConfig
from metaalign.errors import DataError

_ROWS_A_GROUP = 1_000


def load(config: DatasetConfig) -> datasets.Dataset:
    """The rows of a split, from the hub, a folder of data files, or what `save_to_disk` wrote.

    Raises:
        DataError: there is no such data set, configuration or split.
    """
    try:
        if _is_saved(Path(config.name)):
            return _saved_split(config)
        found = datasets.load_dataset(
            config.name, config.config, split=config.split, revision=config.revision
        )
    except (OSError, ValueError, LookupError, DatasetsError) as error:
        raise DataError(f"dataset {config.name!r}: {error}") from error
    assert isinstance(found, datasets.Dataset)
    return found


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
    """sha256 of its columns and all of its values."""
    digest = hashlib.sha256(str(dataset.features).encode())
    for batch in dataset.with_format("arrow").iter(batch_size=1_000):
        for column in batch.combine_chunks().columns:  # pyright: ignore[reportAttributeAccessIssue]
            digest.update(repr(column.to_pylist()).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def write(dataset: datasets.Dataset, file: Path) -> None:
    """All rows as a Parquet file."""
    dataset.to_parquet(file, batch_size=_ROWS_A_GROUP)
