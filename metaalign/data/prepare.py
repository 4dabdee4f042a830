"""The prepare job: files and recipes in, token store out. The Ray Data graph over this room.

    parts --survey--> a sample of text --> a tokenizer, where one is to be trained
                      signatures of held-out prompts --> which training examples repeat them
    parts --read, encode--> shards, their pieces of the index, counts, quarantine

A part is a range of a file or of rule-written examples. Its task reads and writes a few hundred
rows at a time, straight into the folder that the store is built in; nothing but the parts' numbers
goes through Ray, so memory does not grow with the data. What a store holds, and in which order,
depends on the settings and the files alone, never on how many tasks there were.
"""

import functools
import gc
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import ray
import ray.data
from rich.console import Console
from rich.table import Table

from metaalign.config import PrepareConfig, resolve
from metaalign.data.cases import write_cases
from metaalign.data.duplicates import NearHeldOut
from metaalign.data.files import code_fingerprint
from metaalign.data.ledger import (
    COUNTS,
    DUPLICATES,
    FOLDER,
    QUARANTINE,
    UNANSWERED,
    read_quarantine,
    read_sample,
)
from metaalign.data.parts import (
    RECIPES,
    Part,
    plan_parts,
    read_ledger,
    signatures_of,
    split_parts,
    survey_part,
    write_part,
)
from metaalign.data.store import CASES_FILE, MANIFEST_FILE, SCHEMA_VERSION, TokenStore
from metaalign.data.tokenizer import load_tokenizer, train_tokenizer
from metaalign.data.tokens import SegmentEncoder
from metaalign.data.view import choose_examples, write_page
from metaalign.data.writer import StoreWriter
from metaalign.errors import DataError
from metaalign.examples import HELD_OUT, TRAIN
from metaalign.template import Template
from metaalign.tracking import Run

ROOMS = ("examples.py", "template.py", "wire.py", "preferences", "data")
"""Where the code lies that decides what a store holds."""

_SHOWN = ("rows", "used", "quarantined", "written", TRAIN, HELD_OUT)
"""Counts of the printed ledger; what was left out on the way is told below it."""

_BAD_ROWS_SHOWN = 3
_REASONS_SHOWN = 5
_EXAMPLES_SHOWN = 12
_COLLECTED = 100_000
"""Objects that a worker makes before it looks for garbage; the default is 700."""
_CONSOLE = Console(markup=False, highlight=False)


def run_prepare(config: PrepareConfig, run: Run) -> TokenStore:
    """Prepare the store and log settings, counts and manifest to the run.

    Raises:
        DataError: see `prepare_store`.
    """
    run.log_params(config.model_dump(mode="json", exclude={"tracking"}))
    started = time.monotonic()
    store = prepare_store(config)
    totals = {key: sum(entry[key] for entry in store.manifest["ledger"]) for key in COUNTS}
    tokens = sum(bins["tokens"] for bins in store.manifest["token_histogram"].values())
    metrics = {**totals, "tokens": tokens, "seconds": time.monotonic() - started}
    run.log_metrics({f"prepare/{name}": value for name, value in metrics.items()})
    run.set_tags({"store_fingerprint": store.fingerprint})
    for name in (MANIFEST_FILE, "ledger.json", QUARANTINE):
        if (store.path / name).exists():
            run.log_artifact(store.path / name, "store")
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "store.html"
        write_page(store, page, choose_examples(store, _EXAMPLES_SHOWN))
        run.log_artifact(page, "store")
    return store


def prepare_store(config: PrepareConfig) -> TokenStore:
    """The token store that the settings describe; a finished one of equal fingerprint is reused.

    Raises:
        DataError: a source cannot be read, too many of its rows are bad, or a split that was
            asked for is empty.
        TemplateError: the tokenizer cannot be loaded or cannot carry the template.
    """
    parts = plan_parts(config)
    template = _loaded_template(config)
    fingerprint = _fingerprint(config, parts, template)
    path = resolve(config.storage, config.output)
    store = _finished_store(path, fingerprint)
    if store is not None:
        _CONSOLE.print(f"{path}: the token store is finished and its input has not changed")
        return store
    with StoreWriter(path) as writer:
        store = _build(config, parts, writer, template=template, fingerprint=fingerprint)
    _CONSOLE.print(_table(store))
    return store


def _loaded_template(config: PrepareConfig) -> Template | None:
    if config.tokenizer.path is None:
        return None
    local = resolve(config.storage, config.tokenizer.path)
    return load_tokenizer(str(local) if local.exists() else config.tokenizer.path)


def _fingerprint(config: PrepareConfig, parts: Sequence[Part], template: Template | None) -> str:
    made_of = {
        "schema_version": SCHEMA_VERSION,
        "code": code_fingerprint(ROOMS),
        "config": config.model_dump(mode="json", exclude={"storage", "output", "tracking"}),
        "files": [(part.name, part.format, part.fingerprint) for part in parts],
        "template": template and template.fingerprint,
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def _finished_store(path: Path, fingerprint: str) -> TokenStore | None:
    if not path.exists():
        return None
    if not (path / MANIFEST_FILE).exists():
        raise DataError(
            f"{path}: the folder exists and holds no token store; remove it, or give another "
            "`output`"
        )
    try:
        store = TokenStore.open(path)
    except DataError:
        return None  # of another version, or damaged: prepared again
    return store if store.fingerprint == fingerprint else None


def _build(
    config: PrepareConfig,
    parts: Sequence[Part],
    writer: StoreWriter,
    *,
    template: Template | None,
    fingerprint: str,
) -> TokenStore:
    folder = writer.folder
    if config.recipes is not None:  # first, since it finds at once what the recipes cannot write
        lines = [case.to_json() for case in write_cases(config.recipes, seed=config.seed)]
        (folder / CASES_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    parts = split_parts(parts, folder)
    near, sampled, signed = None, template is None, config.near_duplicates is not None
    if sampled or signed:
        _CONSOLE.print(f"surveying {len(parts)} parts")
        survey = functools.partial(survey_part, folder=folder, sampled=sampled, signed=signed)
        _for_each(parts, survey)
        _check_ledger(config, parts, writer)
    if config.near_duplicates is not None:
        files = [signatures_of(folder, number) for number in range(len(parts))]
        near = NearHeldOut(files, config.near_duplicates)
    if template is None:
        sample = read_sample(folder, len(parts))
        template = train_tokenizer(sample, config.tokenizer.vocabulary_size)
    _CONSOLE.print(f"writing {len(parts)} parts as token ids")
    tools = ray.put((template, near))
    _for_each(parts, functools.partial(_write, folder=folder, tools=tools))
    ledger = _check_ledger(config, parts, writer)
    shutil.rmtree(folder / FOLDER)
    return writer.finish(template, fingerprint=fingerprint, ledger=ledger)


def _for_each(parts: Sequence[Part], task: Callable[[Part, int], None]) -> None:
    """Run a task for every part, on all of the cluster."""
    run = functools.partial(_run, parts=ray.put(tuple(parts)), task=task)
    with _data_context():
        numbers = ray.data.from_items([*range(len(parts))], override_num_blocks=len(parts))
        done = numbers.map_batches(run, batch_size=1).take_all()
    assert len(done) == len(parts), (len(done), len(parts))


@contextmanager
def _data_context() -> Iterator[None]:
    """Ray Data's settings for one stage that has the cluster for itself."""
    context = ray.data.DataContext.get_current()
    settings = {
        "enable_progress_bars": _CONSOLE.is_terminal,  # in a log they are a page of repeats
        "print_on_execution_start": False,
        # Else it starts one task, and more only when it knows what one gives: half of two cores.
        "op_resource_reservation_enabled": False,
    }
    before = {name: getattr(context, name) for name in settings}
    try:
        for name, value in settings.items():
            setattr(context, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)


def _run(batch: Any, *, parts: ray.ObjectRef, task: Callable[[Part, int], None]) -> Any:
    (number,) = map(int, batch["item"])
    task(_parts(parts)[number], number)
    return batch


@functools.lru_cache(maxsize=1)
def _parts(parts: ray.ObjectRef) -> Sequence[Part]:
    return ray.get(parts)


def _write(part: Part, number: int, *, folder: Path, tools: ray.ObjectRef) -> None:
    write_part(part, number, folder, *_tools(tools))


@functools.lru_cache(maxsize=1)
def _tools(tools: ray.ObjectRef) -> tuple[SegmentEncoder, NearHeldOut | None]:
    """One set a worker process, so that its tasks share the segments that they have encoded."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a task for every core already
    template, near = ray.get(tools)
    encoder = SegmentEncoder(template)
    # Rows hold no cycles, and what was imported stays: looking for garbage among them again and
    # again took a fifth of a task's time.
    gc.freeze()
    gc.set_threshold(_COLLECTED)
    return encoder, near


def _check_ledger(
    config: PrepareConfig, parts: Sequence[Part], writer: StoreWriter
) -> list[dict[str, Any]]:
    """The ledger, where no source has too many bad rows and no split is empty."""
    ledger = read_ledger(parts, writer.folder)
    for number, (source, entry) in enumerate(zip(config.sources, ledger, strict=False)):
        allowed = config.max_bad_ratio if source.max_bad_ratio is None else source.max_bad_ratio
        if entry["quarantined"] > allowed * entry["rows"]:
            _refuse_source(number, allowed, parts, entry, writer)
    unanswered = sum(entry[UNANSWERED] for entry in ledger)
    if unanswered and unanswered == sum(entry["examples"] for entry in ledger):
        raise DataError(
            f"none of {unanswered:,} prompts has a response to train on; give sources that hold "
            "answers, too"
        )
    if not sum(entry[TRAIN] for entry in ledger):
        raise DataError(
            f"no example is left in the split {TRAIN}; held_out_ratio is {config.held_out_ratio}, "
            "and rows may carry a split of their own in tags.split"
        )
    files = [entry for entry in ledger if entry["source"] != RECIPES]
    if config.held_out_ratio > 0 and files and not sum(entry[HELD_OUT] for entry in files):
        raise DataError(
            f"the split {HELD_OUT} is empty: none of {sum(entry['examples'] for entry in files)} "
            f"examples fell into held_out_ratio {config.held_out_ratio}; raise it, add data, or "
            "set held_out_ratio=0 to hold nothing out"
        )
    return ledger


def _refuse_source(
    number: int,
    allowed: float,
    parts: Sequence[Part],
    entry: dict[str, Any],
    writer: StoreWriter,
) -> NoReturn:
    kept = writer.path.with_name(f"{writer.path.name}-quarantine")
    numbers = [place for place, part in enumerate(parts) if part.number == number]
    bad = read_quarantine(writer.folder, numbers, limit=_BAD_ROWS_SHOWN)
    shutil.rmtree(kept, ignore_errors=True)
    os.replace(writer.folder / QUARANTINE, kept)
    first = "".join(f"\n  {row.file}, row {row.row}: {row.reason}" for row in bad)
    raise DataError(
        f"{entry['source']}: {entry['quarantined']} of {entry['rows']} rows are bad, more than "
        f"max_bad_ratio {allowed} allows. All of them, with their reasons, are in "
        f"{kept}; mend the rows or raise max_bad_ratio. The first:{first}"
    )


def _table(store: TokenStore) -> Table:
    table = Table(title=f"{store.path}: {len(store)} examples")
    table.add_column("source", overflow="fold")
    for name in _SHOWN:
        table.add_column(name.replace("_", " "), justify="right", no_wrap=True)
    for entry in store.manifest["ledger"]:
        table.add_row(_short(entry["source"]), *(f"{entry[name]:,}" for name in _SHOWN))
    histogram = store.manifest["token_histogram"]
    tokens = ", ".join(f"{tier} {bins['tokens']:,}" for tier, bins in histogram.items())
    told = [line for entry in store.manifest["ledger"] for line in _left_out(entry)]
    table.caption = "\n".join([f"tokens: {tokens}", *told])
    table.caption_justify = "left"
    return table


def _left_out(entry: dict[str, Any]) -> Iterator[str]:
    """What a source holds that no example shows."""
    name = _short(entry["source"])
    for reason, count in list(entry["reasons"].items())[:_REASONS_SHOWN]:
        yield f"{name}: {count:,} quarantined: {reason}"
    if entry[UNANSWERED]:
        yield f"{name}: {entry[UNANSWERED]:,} prompts without a response are left out"
    if entry[DUPLICATES]:
        yield f"{name}: {entry[DUPLICATES]:,} near-duplicates of held-out examples are left out"
    for reason, count in list(entry["unfits"].items())[:_REASONS_SHOWN]:
        yield f"{name}: {count:,} examples are left out: {reason}"
    if entry["ignored"]:
        keys = ", ".join(f"{key} ({count:,})" for key, count in entry["ignored"].items())
        yield f"{name}: keys that are not read, and rows that have them: {keys}"


def _short(source: str) -> str:
    """The last two parts of a path or address."""
    return "/".join(source.partition("?")[0].rsplit("/", 2)[-2:])
