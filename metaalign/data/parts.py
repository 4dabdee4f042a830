"""What one task of the prepare job reads: a file, a data set, or a range of rule-written examples.

Plain functions, no Ray. A part's rows come back as a table; its counts, its bad rows and a sample
of its text go to files in the folder that the store is built in, so that a task that is run twice
writes the same files twice:

    parts/00003.json               {"rows": 2312, "used": 2299, ..., "texts": ["Capital of Peru?"]}
    quarantine/00003-pairs.jsonl   {"file": "...", "row": 41, "reason": "...", "text": "..."}
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from metaalign.config import PrepareConfig
from metaalign.config.prepare import DatasetConfig, RecipesConfig, SourceConfig
from metaalign.data import hub, recipes
from metaalign.data.files import file_fingerprint, find_files
from metaalign.data.formats import detect_format, read_rows
from metaalign.data.formats.personas import persona_info
from metaalign.data.reading import BadRow, FileRead, Reading
from metaalign.data.records import Record, check_file, read_records
from metaalign.data.tokenizer import sample_texts
from metaalign.errors import DataError, StorageError
from metaalign.examples import EXAMPLE_SCHEMA, HELD_OUT, TRAIN, Example
from metaalign.folders import Folder

RECIPES = "recipes"
"""What the ledger calls rule-written data."""

UNANSWERED = "unanswered"

COUNTS = ("rows", "used", "quarantined", "examples", UNANSWERED, TRAIN, HELD_OUT)
"""The ledger's counts: source rows, those that became examples and those that did not; examples,
those left out since they have no response, and those of each split."""

_TALLIES, _TALLIED = ("reasons", "ignored"), 20
"""Why rows were quarantined, and keys that their format does not read: the most common of each."""

PART_SCHEMA = pa.schema([*EXAMPLE_SCHEMA, ("part", pa.int32()), ("position", pa.int64())])
"""An example, and its place in the store's order."""

_EXAMPLES_A_PART = 2_500
FOLDER, QUARANTINE = "parts", "quarantine"


@dataclass(frozen=True)
class Part:
    """A file, a data set, or examples `start` to `stop` - 1 of the recipes.

    Attributes:
        number: The source's place in the settings; None for the recipes.
        source: Path, glob, address or data set as the settings give it; RECIPES for recipes.
        name: As errors and examples show where a row came from.
        place: The file. That of a data set is written when the store is built.
        fingerprint: Of the content.
    """

    number: int | None
    source: str
    format: str
    reading: Reading
    name: str = RECIPES
    place: Folder | None = None
    dataset: DatasetConfig | None = None
    fingerprint: str = ""
    recipes: RecipesConfig | None = None
    start: int = 0
    stop: int = 0


def plan_parts(config: PrepareConfig) -> list[Part]:
    """Every part that a job would read, in the store's order.

    Raises:
        DataError: lists every file and data set that cannot be read or told.
    """
    parts: list[Part] = []
    problems: list[str] = []
    for number, source in enumerate(config.sources):
        reading = Reading(
            system_info=source.system_info,
            user_info=source.user_info,
            order_by=source.order_by,
            assistant_turns=source.assistant_turns,
            held_out_ratio=config.held_out_ratio,
            oppose_personas=config.oppose_personas,
            seed=config.seed,
        )
        parts += _source_parts(number, source, reading, problems)
    if problems:
        raise DataError("\n  ".join(problems))
    return [*parts, *_recipe_parts(config)]


def _source_parts(
    number: int, source: SourceConfig, reading: Reading, problems: list[str]
) -> list[Part]:
    parts = []
    try:
        files = [] if source.path is None else find_files(source.path)
        if source.dataset is not None:
            parts.append(_dataset_part(number, source.dataset, source.format, reading))
    except (DataError, StorageError) as error:
        problems.append(str(error))
        return []
    for file in files:
        try:
            parts.append(_file_part(number, file, source, reading))
        except (DataError, StorageError) as error:
            problems.append(str(error))
    return parts


def _file_part(number: int, file: Folder, source: SourceConfig, reading: Reading) -> Part:
    check_file(file)
    name, format = str(file), source.format
    format = detect_format(read_records(file), name) if format == "auto" else format
    if format == "personas":
        persona_info(name, reading)
    told = file_fingerprint(file)
    return Part(number, str(source.path), format, reading, name, place=file, fingerprint=told)


def _dataset_part(number: int, config: DatasetConfig, format: str, reading: Reading) -> Part:
    dataset, name = hub.load(config), hub.name_of(config)
    rows = (Record(row, value) for row, value in enumerate(dataset))
    format = detect_format(rows, name) if format == "auto" else format
    if format == "personas":
        persona_info(name, reading)
    told = hub.fingerprint(dataset)
    return Part(number, name, format, reading, name, dataset=config, fingerprint=told)


def write_datasets(parts: Sequence[Part], folder: Path) -> list[Part]:
    """The parts, data sets written to Parquet files in the folder that the store is built in."""
    placed = []
    for number, part in enumerate(parts):
        if part.dataset is not None:
            (folder / FOLDER).mkdir(exist_ok=True)
            file = folder / FOLDER / f"{number:05d}.parquet"
            hub.write(hub.load(part.dataset), file)
            part = replace(part, place=file)
        placed.append(part)
    return placed


def _recipe_parts(config: PrepareConfig) -> Iterator[Part]:
    count = recipes.count_examples(config.recipes) if config.recipes is not None else 0
    reading = Reading(seed=config.seed)
    for start in range(0, count, _EXAMPLES_A_PART):
        stop = min(start + _EXAMPLES_A_PART, count)
        yield Part(None, RECIPES, RECIPES, reading, recipes=config.recipes, start=start, stop=stop)


def read_part(part: Part, number: int, folder: Path, *, sampled: bool) -> pa.Table:
    """A part's examples as rows of PART_SCHEMA.

    Args:
        number: The part's place in the store's order.
        folder: Gets the part's counts, bad rows and, where `sampled`, a sample of its text.
    """
    result = _read(part)
    examples = [example for example in result.examples if example.responses]
    splits = Counter(example.tags["split"] for example in examples)
    counts = {
        "rows": result.rows,
        "used": result.used,
        "quarantined": len(result.bad),
        "examples": len(result.examples),
        UNANSWERED: len(result.examples) - len(examples),
        **{split: splits[split] for split in (TRAIN, HELD_OUT)},
        "reasons": Counter(_kind_of(row.reason) for row in result.bad),
        "ignored": result.ignored,
    }
    texts = sample_texts(_texts(examples)) if sampled else []
    file = folder / FOLDER / f"{number:05d}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({**counts, "texts": texts}), encoding="utf-8")
    if result.bad:
        stem = part.name.rpartition("/")[2].partition(".")[0]
        _write_quarantine(folder / QUARANTINE / f"{number:05d}-{stem}", result.bad)
    rows = [
        {**example.to_row(), "part": number, "position": position}
        for position, example in enumerate(examples)
    ]
    return pa.Table.from_pylist(rows, schema=PART_SCHEMA)


def read_sample(folder: Path, count: int) -> list[str]:
    """The sample of all parts' text, the same however the rows were dealt over parts."""
    sample: list[str] = []
    for number in range(count):
        sample = sample_texts([*sample, *_read_counts(folder, number)["texts"]])
    return sample


def read_ledger(parts: Sequence[Part], folder: Path) -> list[dict[str, Any]]:
    """Rows in, examples out and rows quarantined, by source, in the settings' order.

    What does not add up is an error of ours.
    """
    ledger: dict[int | None, dict[str, Any]] = {}
    for number, part in enumerate(parts):
        empty = {"formats": [], "files": 0, **dict.fromkeys(COUNTS, 0)}
        empty |= {name: Counter() for name in _TALLIES}
        entry = ledger.setdefault(part.number, {"source": part.source, **empty})
        entry["files"] += part.recipes is None
        entry["formats"] = sorted({*entry["formats"], part.format})
        counts = _read_counts(folder, number)
        for name in COUNTS:
            entry[name] += counts[name]
        for name in _TALLIES:
            entry[name].update(counts[name])
    for entry in ledger.values():
        assert entry["rows"] == entry["used"] + entry["quarantined"], entry
        left = sum(entry[name] for name in (UNANSWERED, TRAIN, HELD_OUT))
        assert entry["examples"] == left, entry
        for name in _TALLIES:
            entry[name] = dict(entry[name].most_common(_TALLIED))
    return list(ledger.values())


def _kind_of(reason: str) -> str:
    """A reason without the value that it quotes, so that equal ones can be counted."""
    return reason.partition(", got ")[0]


def read_quarantine(folder: Path, numbers: Iterable[int], *, limit: int) -> list[BadRow]:
    """The first bad rows of some parts."""
    bad: list[BadRow] = []
    for number in numbers:
        for file in (folder / QUARANTINE).glob(f"{number:05d}-*.jsonl"):
            lines = file.read_text(encoding="utf-8").split("\n")[:-1]
            bad += [BadRow(**json.loads(line)) for line in lines[: limit - len(bad)]]
    return bad


def _read(part: Part) -> FileRead:
    if part.recipes is None:
        assert part.place is not None, "write_datasets gives a data set its place"
        return read_rows(read_records(part.place), part.name, part.format, part.reading)
    examples = recipes.write_examples(
        part.recipes, seed=part.reading.seed, start=part.start, stop=part.stop
    )
    for example in examples:
        example.validate()
    count = part.stop - part.start
    return FileRead(RECIPES, rows=count, used=count, examples=examples)


def _texts(examples: Sequence[Example]) -> set[str]:
    """What the tokenizer may learn from: the training split alone."""
    texts: set[str] = set()
    for example in examples:
        if example.tags["split"] == TRAIN:
            texts |= {example.system_info, example.user_info}
            texts |= {text for turn in example.turns for text in (turn.text, turn.user_info)}
            texts |= {response.text for response in example.responses}
    return texts - {""}


def _write_quarantine(stem: Path, bad: Sequence[BadRow]) -> None:
    stem.parent.mkdir(exist_ok=True)
    lines = [json.dumps(asdict(row), ensure_ascii=False) for row in bad]
    Path(f"{stem}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _read_counts(folder: Path, number: int) -> dict[str, Any]:
    return json.loads((folder / FOLDER / f"{number:05d}.json").read_text(encoding="utf-8"))
