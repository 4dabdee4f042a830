"""The prepare job: files and recipes in, token store out. Runs the stages as Ray Data tasks.

    parts --ask-----> answers of teachers, if sources need them
    parts --survey--> a sample of text --> a tokenizer, if one is to be trained
                      signatures of held-out prompts --> near-duplicates among training examples
    parts --read, encode--> shards, their pieces of the index, counts, quarantine

A part is a range of a file or of rule-written examples. Its task reads and writes a few hundred
rows at a time, directly into the folder that the store is built in. Only the parts' numbers go
through Ray, so memory does not grow with the data. The examples of a store and their order depend
on the settings and the files alone, never on the number of tasks.
"""

import functools
import gc
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import ray

from metaalign.config import PrepareConfig, resolve
from metaalign.data.recipes.cases import write_cases
from metaalign.data.view import choose_examples, write_page
from metaalign.data.work.asking import ask_teachers, kept_answers, look_up_teachers
from metaalign.data.work.ledger import COUNTS, FOLDER, QUARANTINE, read_sample
from metaalign.data.work.limits import check_ledger
from metaalign.data.work.near_duplicates import NearHeldOut
from metaalign.data.work.overview import overview
from metaalign.data.work.parts import Part, plan_parts, split_parts
from metaalign.data.work.passes import signatures_of, survey_part, write_part
from metaalign.data.work.tasks import CONSOLE, for_each
from metaalign.errors import DataError
from metaalign.source_code import code_fingerprint
from metaalign.store.encoder import SegmentEncoder
from metaalign.store.token_store import CASES_FILE, MANIFEST_FILE, SCHEMA_VERSION, TokenStore
from metaalign.store.tokenizer import load_tokenizer, train_tokenizer
from metaalign.store.writer import StoreWriter
from metaalign.template import Template
from metaalign.tracking import Run
from metaalign.upstream import Kept, Served

MODULES = ("data/prepare.py",)
"""A store depends on the code of these modules and of all that they import."""

_EXAMPLES_SHOWN = 12
_ANSWER_SETTINGS = {"model", "extra", "tiers"}
"""The settings of a teacher on which its answers depend."""

_COLLECTED = 100_000
"""Objects that a worker allocates between garbage collections; the default is 700."""


def run_prepare(config: PrepareConfig, run: Run) -> TokenStore:
    """Prepare the store and log settings, counts and manifest to the run.

    Raises:
        DataError: see `prepare_store`.
    """
    started = time.monotonic()
    store = prepare_store(config, run)
    totals = {key: sum(entry[key] for entry in store.manifest["ledger"]) for key in COUNTS}
    tokens = sum(bins["tokens"] for bins in store.manifest["token_histogram"].values())
    metrics = {**totals, "tokens": tokens, "seconds": time.monotonic() - started}
    run.log_metrics({f"prepare/{name}": value for name, value in metrics.items()})
    for name, spent in store.manifest["teachers"].items():
        run.log_metrics({f"teacher/{name}/{what}": value for what, value in spent.items()})
    run.set_tags({"store_fingerprint": store.fingerprint})
    for name in (MANIFEST_FILE, "ledger.json", QUARANTINE):
        if (store.path / name).exists():
            run.log_artifact(store.path / name, "store")
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "store.html"
        write_page(store, page, choose_examples(store, _EXAMPLES_SHOWN))
        run.log_artifact(page, "store")
    return store


def prepare_store(config: PrepareConfig, run: Run | None = None) -> TokenStore:
    """Build the token store of the settings. A finished store with the same fingerprint is reused.

    Args:
        run: The settings are logged to it once all checks before the work have passed.

    Raises:
        DataError: a source cannot be read, too many of its rows are bad, or a requested split is
            empty.
        TemplateError: the tokenizer cannot be loaded or cannot be used with the template.
        UpstreamError: a teacher cannot be reached or refuses requests.
    """
    parts = plan_parts(config)
    template = _load_template(config)
    served = look_up_teachers(config)
    fingerprint = _fingerprint(config, parts, template, served)
    if run is not None:
        run.log_params(config.model_dump(mode="json"))
    path = resolve(config.storage, config.output)
    store = _finished_store(path, fingerprint)
    if store is not None:
        CONSOLE.print(f"{path}: the token store is finished and its input has not changed")
        return store
    with StoreWriter(path) as writer:
        store = _build(
            config, parts, writer, template=template, fingerprint=fingerprint, served=served
        )
    CONSOLE.print(overview(store))
    return store


def _load_template(config: PrepareConfig) -> Template | None:
    if config.tokenizer.path is None:
        return None
    local = resolve(config.storage, config.tokenizer.path)
    return load_tokenizer(str(local) if local.exists() else config.tokenizer.path)


def _fingerprint(
    config: PrepareConfig,
    parts: Sequence[Part],
    template: Template | None,
    served: Mapping[str, Served],
) -> str:
    excluded = {"storage", "output", "tracking", "teachers"}
    teachers = {
        name: (config.teachers[name].model_dump(include=_ANSWER_SETTINGS), each.identity)
        for name, each in served.items()
    }
    inputs = {
        "schema_version": SCHEMA_VERSION,
        "code": code_fingerprint(*MODULES),
        "config": config.model_dump(mode="json", exclude=excluded),
        "teachers": teachers,
        "files": [(part.name, part.format, part.fingerprint) for part in parts],
        "template": template and template.fingerprint,
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def _finished_store(path: Path, fingerprint: str) -> TokenStore | None:
    if not path.exists():
        return None
    if not (path / MANIFEST_FILE).exists():
        raise DataError(
            f"{path}: the folder exists but holds no token store; remove it, or give another "
            "`output`"
        )
    try:
        store = TokenStore.open(path)
    except DataError:
        return None  # of another version or damaged, so it is prepared again
    if store.fingerprint != fingerprint:
        return None
    failed = sum(spent["failed"] for spent in store.manifest["teachers"].values())
    if failed:
        CONSOLE.print(
            f"{path}: {failed:,} requests failed when it was prepared; they are sent again"
        )
    return None if failed else store


def _build(
    config: PrepareConfig,
    parts: Sequence[Part],
    writer: StoreWriter,
    *,
    template: Template | None,
    fingerprint: str,
    served: Mapping[str, Served],
) -> TokenStore:
    folder = writer.folder
    _write_cases(config, folder)  # first, since it fails at once if the recipes cannot write
    parts = split_parts(parts, folder)
    survey = functools.partial(_survey, config, parts, writer)
    kept, spent, near, unsigned = None, {}, None, config.near_duplicates is not None
    if config.asks():  # files are checked before any answer is paid for
        survey(sampled=False)
        near, unsigned = _near_held_out(config, folder, len(parts)), False
        kept = kept_answers(config, served, folder)
        spent = ask_teachers(config, parts, kept, near)
    if template is None or unsigned:
        survey(sampled=template is None, near=near, kept=kept)
        near = near or _near_held_out(config, folder, len(parts))
    if template is None:
        sample = read_sample(folder, len(parts))
        template = train_tokenizer(sample, config.tokenizer.vocabulary_size)
    CONSOLE.print(f"writing {len(parts)} parts as token ids")
    tools = ray.put((template, near, kept))
    for_each(parts, functools.partial(_write, folder=folder, tools=tools))
    ledger = check_ledger(config, parts, writer)
    shutil.rmtree(folder / FOLDER)
    return writer.finish(
        template, fingerprint=fingerprint, ledger=ledger, teachers=spent, context=config.context
    )


def _write_cases(config: PrepareConfig, folder: Path) -> None:
    if config.recipes is not None:
        cases = write_cases(config.recipes, seed=config.seed, closed=config.held_out_families)
        lines = [case.to_json() for case in cases]
        (folder / CASES_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _survey(
    config: PrepareConfig,
    parts: Sequence[Part],
    writer: StoreWriter,
    *,
    sampled: bool,
    near: NearHeldOut | None = None,
    kept: Kept | None = None,
) -> None:
    """Count rows; keep a sample of text, and signatures if near-duplicates are not known yet."""
    CONSOLE.print(f"surveying {len(parts)} parts")
    signed = config.near_duplicates is not None and near is None
    task = functools.partial(_survey_one, folder=writer.folder, sampled=sampled, signed=signed)
    for_each(parts, functools.partial(task, lookups=ray.put((near, kept))))
    check_ledger(config, parts, writer)


def _survey_one(
    part: Part, number: int, *, folder: Path, sampled: bool, signed: bool, lookups: ray.ObjectRef
) -> None:
    near, kept = _lookups(lookups)
    ask = kept and kept.answer
    survey_part(part, number, folder=folder, sampled=sampled, signed=signed, near=near, ask=ask)


@functools.lru_cache(maxsize=1)
def _lookups(lookups: ray.ObjectRef) -> tuple[NearHeldOut | None, Kept | None]:
    return ray.get(lookups)


def _near_held_out(config: PrepareConfig, folder: Path, count: int) -> NearHeldOut | None:
    if config.near_duplicates is None:
        return None
    files = [signatures_of(folder, number) for number in range(count)]
    return NearHeldOut(files, config.near_duplicates)


def _write(part: Part, number: int, *, folder: Path, tools: ray.ObjectRef) -> None:
    encoder, near, kept = _tools(tools)
    write_part(part, number, folder, encoder, near=near, ask=kept and kept.answer)


@functools.lru_cache(maxsize=1)
def _tools(tools: ray.ObjectRef) -> tuple[SegmentEncoder, NearHeldOut | None, Kept | None]:
    """Tools shared by all tasks of a worker process, so that they share the segment cache."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # every core has a task already
    template, near, kept = ray.get(tools)
    encoder = SegmentEncoder(template)
    # Rows form no reference cycles, and imported modules are never freed. Scanning them for garbage
    # took a fifth of a task's time.
    gc.freeze()
    gc.set_threshold(_COLLECTED)
    return encoder, near, kept
