"""The parts of the prepare job: ranges of files or of rule-written examples, one for each task.

Plain functions; does not import Ray. The parts depend on settings and files alone, never on the
cluster. A part is read a few hundred rows at a time, however long it is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from metaalign.config import PrepareConfig
from metaalign.config.prepare import DatasetConfig, RecipesConfig, SourceConfig
from metaalign.data.formats import SHAPES, detect_format, read_rows
from metaalign.data.formats.personas import persona_info
from metaalign.data.recipes import rule_written
from metaalign.data.sources import hub
from metaalign.data.sources.column_mapping import check_columns, mapped_records
from metaalign.data.sources.files import file_fingerprint, find_files
from metaalign.data.sources.options import SourceOptions
from metaalign.data.sources.outcome import FileRead
from metaalign.data.sources.records import Span, check_file, read_records
from metaalign.data.sources.splitting import joined_spans, scan_lines, split_file
from metaalign.data.work.ledger import FOLDER
from metaalign.errors import ConfigError, DataError, StorageError
from metaalign.examples import PREFERENCE
from metaalign.folders import Folder, modified, size_of
from metaalign.preferences import FAMILIES
from metaalign.preferences.instructions import INSTRUCTIONS

RECIPES = "recipes"
"""Name of rule-written data in the ledger."""

_EXAMPLES_A_PART = 2_500
_PART_BYTES, _MOST_PARTS = 2 << 20, 1_000
"""The size of a file's range: at least so many bytes, and at least a thousandth of all files."""

_ROWS_AT_ONCE = 250


@dataclass(frozen=True)
class Part:
    """A file or a range of it, a data set, or a range of the recipes' examples.

    Attributes:
        number: The source's place in the settings; None for the recipes.
        source: Path, glob, address or data set as the settings give it; RECIPES for recipes.
        name: Name of the file in errors and in the sources of examples.
        place: The file. For a data set it is written when the store is built.
        fingerprint: Fingerprint of the content of the whole file.
        state: Size and modification time of the file when the parts were planned.
        lines: Ranges of a file of JSON lines, from `scan_lines`.
        span: A range of the file, from `split_file` or joined from `lines`; for recipes, the
            examples `start` to `stop` - 1. None for all of it.
    """

    number: int | None
    source: str
    format: str
    options: SourceOptions
    name: str = RECIPES
    place: Folder | None = None
    dataset: DatasetConfig | None = None
    fingerprint: str = ""
    state: tuple[int | None, int | None] = (None, None)
    recipes: RecipesConfig | None = None
    lines: tuple[Span, ...] = ()
    span: Span | None = None


def plan_parts(config: PrepareConfig) -> list[Part]:
    """Every file, data set and range of recipes that a job would read, in the store's order.

    Raises:
        ConfigError: a family in `held_out_families` does not exist.
        DataError: files or data sets cannot be read or their format is unknown. Lists all.
    """
    known = [*FAMILIES, *INSTRUCTIONS]
    unknown = [name for name in config.held_out_families if name not in known]
    if unknown:
        raise ConfigError(
            f"held_out_families: {', '.join(unknown)} is unknown; known are {', '.join(known)}"
        )
    parts: list[Part] = []
    problems: list[str] = []
    for number, source in enumerate(config.sources):
        judged_by = _judged_by(source)
        options = SourceOptions(
            format_is_set=source.format != "auto",
            field=source.field,
            columns=source.columns,
            system_info=source.system_info,
            user_info=source.user_info,
            order_by=None if judged_by else source.order_by,
            assistant_turns=source.assistant_turns,
            held_out_ratio=config.held_out_ratio,
            share=config.share,
            oppose_personas=config.oppose_personas,
            recipe=source.recipe,
            wire=source.correction.wire,
            objectives=tuple(source.correction.objectives.items()),
            warm_up_ratio=source.correction.warm_up_ratio,
            responses=source.responses,
            judgement=source.judgement,
            judged_by=judged_by,
            negatives=source.negatives,
            held_out_families=config.held_out_families,
            seed=config.seed,
        )
        parts += _source_parts(number, source, options, problems)
    if problems:
        raise DataError("\n  ".join(problems))
    return [*parts, *_recipe_parts(config)]


def _judged_by(source: SourceConfig) -> str | None:
    """The setting order_by if it names an objective of the source's judgement, else None."""
    if source.judgement is None:
        return None
    judged = set(source.judgement.objectives)
    judged |= {PREFERENCE} if len(judged) > 1 else set()
    return source.order_by if source.order_by in judged else None


def _source_parts(
    number: int, source: SourceConfig, options: SourceOptions, problems: list[str]
) -> list[Part]:
    parts = []
    try:
        files = [] if source.path is None else find_files(source.path)
        if source.dataset is not None:
            parts.append(_dataset_part(number, source.dataset, source.format, options))
    except (DataError, StorageError) as error:
        problems.append(str(error))
        return []
    for file in files:
        try:
            parts.append(_file_part(number, file, source, options))
        except (DataError, StorageError) as error:
            problems.append(str(error))
    return parts


def _file_part(number: int, file: Folder, source: SourceConfig, options: SourceOptions) -> Part:
    name, format, field = str(file), source.format, source.field
    check_file(file, field=field)
    if source.columns is not None:
        check_columns(read_records(file, field=field), name, source.columns)
    if format == "auto":
        records = mapped_records(read_records(file, field=field), source.columns)
        format = detect_format(records, name)
    if format == "personas":
        persona_info(name, options)
    state = _state(file)
    size = max(_PART_BYTES, (state[0] or 0) // _MOST_PARTS)
    fingerprint, lines = scan_lines(file, size, field=field) or (file_fingerprint(file), [])
    return Part(
        number,
        str(source.path),
        format,
        options,
        name,
        place=file,
        fingerprint=fingerprint,
        state=state,
        lines=tuple(lines),
    )


def _state(file: Folder) -> tuple[int | None, int | None]:
    return size_of(file), modified(file)


def _dataset_part(number: int, config: DatasetConfig, format: str, options: SourceOptions) -> Part:
    dataset, name = hub.load(config), hub.name_of(config)
    if options.columns is not None:
        check_columns(hub.dataset_records(dataset), name, options.columns)
    if format == "auto":
        format = detect_format(mapped_records(hub.dataset_records(dataset), options.columns), name)
    if format == "personas":
        persona_info(name, options)
    fingerprint = hub.fingerprint(dataset)
    return Part(number, name, format, options, name, dataset=config, fingerprint=fingerprint)


def split_parts(parts: Sequence[Part], folder: Path) -> list[Part]:
    """Split files into ranges, one for each task. Writes data sets as files into `folder` first."""
    written = [_written(number, part, folder) for number, part in enumerate(parts)]
    held = sum(part.state[0] or 0 for part in written)
    size = max(_PART_BYTES, held // _MOST_PARTS)
    return [one for part in written for one in _ranges(part, size)]


def _written(number: int, part: Part, folder: Path) -> Part:
    if part.dataset is None:
        return part
    file = folder / FOLDER / f"{number:06d}.parquet"
    file.parent.mkdir(exist_ok=True)
    hub.write(hub.load(part.dataset), file)
    return replace(part, place=file, state=_state(file))


def _ranges(part: Part, size: int) -> list[Part]:
    if part.place is None or SHAPES[part.format].read is None:
        return [part]
    spans = split_file(part.place, size, field=part.options.field) if not part.lines else None
    return [replace(part, span=span, lines=()) for span in spans or joined_spans(part.lines, size)]


def _recipe_parts(config: PrepareConfig) -> Iterator[Part]:
    count = rule_written.count_examples(config.recipes) if config.recipes is not None else 0
    negatives = config.recipes.negatives if config.recipes is not None else None
    options = SourceOptions(
        seed=config.seed,
        share=config.share,
        held_out_families=config.held_out_families,
        negatives=negatives,
    )
    for start in range(0, count, _EXAMPLES_A_PART):
        span = Span(start, min(start + _EXAMPLES_A_PART, count), start)
        yield Part(None, RECIPES, RECIPES, options, recipes=config.recipes, span=span)


def read_part(part: Part) -> Iterator[FileRead]:
    """Read a part's rows a few hundred at a time, or all at once if the format needs all rows.

    Raises:
        DataError: the file cannot be read completely, or has changed since the parts were planned.
    """
    if part.recipes is not None:
        yield from _recipe_reads(part)
        return
    assert part.place is not None, "split_parts writes a data set to a file"
    if _state(part.place) != part.state:
        raise DataError(f"{part.name}: the file was changed while the job ran; start it again")
    found = read_records(part.place, part.span, field=part.options.field)
    records = mapped_records(found, part.options.columns)
    if SHAPES[part.format].read is None:
        yield read_rows(records, part.name, part.format, part.options)
        return
    while rows := list(islice(records, _ROWS_AT_ONCE)):
        yield read_rows(rows, part.name, part.format, part.options)


def _recipe_reads(part: Part) -> Iterator[FileRead]:
    assert part.recipes is not None
    assert part.span is not None
    examples = rule_written.write_examples(
        part.recipes,
        seed=part.options.seed,
        start=part.span.start,
        stop=part.span.stop,
        closed=part.options.held_out_families,
    )
    for example in examples:
        example.validate()
    count = part.span.stop - part.span.start
    yield FileRead(RECIPES, rows=count, used=count, examples=examples)
