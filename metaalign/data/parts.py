"""What one task of the prepare job reads: a file, or a range of rule-written examples.

Plain functions, no Ray. A part's rows come back as a table; its counts, its bad rows and a sample
of its text go to files in the folder that the store is built in, so that a task that is run twice
writes the same files twice:

    parts/00003.json               {"rows": 2312, "used": 2299, ..., "texts": ["Capital of Peru?"]}
    quarantine/00003-pairs.jsonl   {"file": "...", "row": 41, "reason": "...", "text": "..."}
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from metaalign.config import PrepareConfig
from metaalign.config.prepare import RecipesConfig
from metaalign.data import recipes
from metaalign.data.files import (
    BadRow,
    FileRead,
    Reading,
    check_file,
    file_fingerprint,
    find_files,
)
from metaalign.data.formats import detect_format, read_file
from metaalign.data.personas import persona_info
from metaalign.data.tokenizer import sample_texts
from metaalign.errors import DataError
from metaalign.examples import EXAMPLE_SCHEMA, HELD_OUT, TRAIN, Example

RECIPES = "recipes"
"""What the ledger calls rule-written data."""

COUNTS = ("rows", "used", "quarantined", "examples", TRAIN, HELD_OUT)
"""The ledger's counts: source rows, those that became examples, those that did not; examples."""

PART_SCHEMA = pa.schema([*EXAMPLE_SCHEMA, ("part", pa.int32()), ("position", pa.int64())])
"""An example, and its place in the store's order."""

_EXAMPLES_A_PART = 2_500
FOLDER, QUARANTINE = "parts", "quarantine"


@dataclass(frozen=True)
class Part:
    """A file, or examples `start` to `stop` - 1 of the recipes.

    Attributes:
        source: The source's path or glob as the settings give it; RECIPES for recipes.
        fingerprint: The sha256 of the file's content.
    """

    source: str
    format: str
    reading: Reading
    file: str = ""
    fingerprint: str = ""
    recipes: RecipesConfig | None = None
    start: int = 0
    stop: int = 0


def plan_parts(config: PrepareConfig) -> list[Part]:
    """Every part that a job would read, in the store's order.

    Raises:
        DataError: lists every file that cannot be read or told.
    """
    parts: list[Part] = []
    problems: list[str] = []
    for source in config.sources:
        reading = Reading(
            system_info=source.system_info,
            user_info=source.user_info,
            held_out_ratio=config.held_out_ratio,
            oppose_personas=config.oppose_personas,
            seed=config.seed,
        )
        parts += _source_parts(source.path, source.format, reading, problems)
    if problems:
        raise DataError("\n  ".join(problems))
    return [*parts, *_recipe_parts(config)]


def _source_parts(source: str, format: str, reading: Reading, problems: list[str]) -> list[Part]:
    parts = []
    try:
        files = find_files(source)
    except DataError as error:
        problems.append(str(error))
        return []
    for file in files:
        try:
            parts.append(_file_part(file, source, format, reading))
        except DataError as error:
            problems.append(str(error))
    return parts


def _file_part(file: Path, source: str, format: str, reading: Reading) -> Part:
    check_file(file)
    format = detect_format(file) if format == "auto" else format
    if format == "personas":
        persona_info(file, reading)
    return Part(source, format, reading, file=str(file), fingerprint=file_fingerprint(file))


def _recipe_parts(config: PrepareConfig) -> Iterator[Part]:
    count = recipes.count_examples(config.recipes) if config.recipes is not None else 0
    reading = Reading(seed=config.seed)
    for start in range(0, count, _EXAMPLES_A_PART):
        stop = min(start + _EXAMPLES_A_PART, count)
        yield Part(RECIPES, RECIPES, reading, recipes=config.recipes, start=start, stop=stop)


def read_part(part: Part, number: int, folder: Path, *, sampled: bool) -> pa.Table:
    """A part's examples as rows of PART_SCHEMA.

    Args:
        number: The part's place in the store's order.
        folder: Gets the part's counts, bad rows and, where `sampled`, a sample of its text.
    """
    result = _read(part)
    splits = Counter(example.tags["split"] for example in result.examples)
    counts = {
        "rows": result.rows,
        "used": result.rows - len(result.bad),
        "quarantined": len(result.bad),
        "examples": len(result.examples),
        **{split: splits[split] for split in (TRAIN, HELD_OUT)},
    }
    texts = sample_texts(_texts(result.examples)) if sampled else []
    file = folder / FOLDER / f"{number:05d}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({**counts, "texts": texts}), encoding="utf-8")
    if result.bad:
        _write_quarantine(folder / QUARANTINE / f"{number:05d}-{Path(part.file).stem}", result.bad)
    rows = [
        {**example.to_row(), "part": number, "position": position}
        for position, example in enumerate(result.examples)
    ]
    return pa.Table.from_pylist(rows, schema=PART_SCHEMA)


def read_sample(folder: Path, count: int) -> list[str]:
    """The sample of all parts' text, the same however the rows were dealt over parts."""
    sample: list[str] = []
    for number in range(count):
        sample = sample_texts([*sample, *_read_counts(folder, number)["texts"]])
    return sample


def read_ledger(parts: Sequence[Part], folder: Path) -> list[dict[str, Any]]:
    """Rows in, examples out and rows quarantined, by source, in the settings' order."""
    ledger: dict[str, dict[str, Any]] = {}
    for number, part in enumerate(parts):
        entry = ledger.setdefault(
            part.source,
            {"source": part.source, "formats": [], "files": 0, **dict.fromkeys(COUNTS, 0)},
        )
        entry["files"] += bool(part.file)
        entry["formats"] = sorted({*entry["formats"], part.format})
        counts = _read_counts(folder, number)
        for name in COUNTS:
            entry[name] += counts[name]
    return list(ledger.values())


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
        return read_file(Path(part.file), part.format, part.reading)
    examples = recipes.write_examples(
        part.recipes, seed=part.reading.seed, start=part.start, stop=part.stop
    )
    for example in examples:
        example.validate()
    return FileRead(Path(RECIPES), rows=part.stop - part.start, examples=examples)


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
