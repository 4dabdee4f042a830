"""What a stage reads and writes, its fingerprint, and the record that lets it be skipped.

A record, `.stages/sft.json` in the storage:

    {"fingerprint": "9f2c...", "status": "finished", "seconds": 201.4, "run": "a654d7...",
     "outputs": {"sft": "71be..."}}
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metaalign.config import (
    STAGES,
    DPOConfig,
    EvaluateConfig,
    ExportConfig,
    PipelineConfig,
    PrepareConfig,
    ServeConfig,
    SFTConfig,
    resolve,
)
from metaalign.data.prepare import MODULES as PREPARE_MODULES
from metaalign.data.prepare import run_prepare
from metaalign.data.sources import hub
from metaalign.data.sources.files import file_fingerprint, find_files
from metaalign.errors import DataError, StorageError
from metaalign.evaluate.suites import run_evaluate
from metaalign.folders import place_below, write_whole
from metaalign.pipeline.showcase import show_answers
from metaalign.source_code import PACKAGE, code_fingerprint
from metaalign.tracking import Run
from metaalign.train.export import run_export
from metaalign.train.launch.driver import INITIAL_FOLDER
from metaalign.train.launch.on_ray import run_dpo, run_sft
from metaalign.train.model.loading import may_be_hub_name

_TRAINING = ("train/launch/driver.py", "train/worker.py", "config/preference_losses.py")
"""Where the workers run, and what restarts them, bends nothing. The table of losses does."""

_MODULES: dict[type, tuple[str, ...]] = {
    PrepareConfig: PREPARE_MODULES,
    SFTConfig: _TRAINING,
    DPOConfig: _TRAINING,
    ExportConfig: ("train/export.py",),
    EvaluateConfig: ("evaluate/suites.py",),
    ServeConfig: (),  # it runs every time
}
"""A stage's output depends on this code, and on what it imports: see `source_code`. How data is
read counts for prepare alone, since training reads a store, whose fingerprint counts."""


@dataclass(frozen=True)
class Stage:
    """One job of the pipeline."""

    name: str
    settings: Any
    job: Callable[[Any, Run], object]
    reads: tuple[Path, ...]
    """Files and folders that must be there, or be written by an earlier stage."""

    writes: tuple[Path, ...] = ()
    """Folders that it leaves. Without any, the stage runs every time."""

    may_write: tuple[Path, ...] = ()
    """Folders that it leaves for some settings."""

    names: tuple[str, ...] = ()
    """Inputs that are names, such as a model of the hub, some with what they hold."""


@dataclass
class Record:
    """What the storage remembers of a stage."""

    fingerprint: str
    status: str
    seconds: float = 0.0
    run: str = ""
    outputs: dict[str, str] = field(default_factory=dict)
    """Folder and what it held at the end."""


def stages_of(config: PipelineConfig) -> list[Stage]:
    """The stages that the config asks for, in order."""
    stages: list[Stage] = []
    makers: dict[str, Callable[[Any], Stage]] = {
        "prepare": _prepare,
        "sft": lambda settings: _training("sft", settings, run_sft, before=stages),
        "sft_export": lambda settings: _export("sft_export", settings),
        "dpo": lambda settings: _training("dpo", settings, run_dpo, before=stages),
        "export": lambda settings: _export("export", settings),
        "evaluate": _evaluate,
        "serve": lambda settings: _serve(config, settings),
    }
    for name in STAGES:
        settings = getattr(config, name)
        if settings is not None:
            stages.append(makers[name](settings))
    return stages


def _prepare(settings: PrepareConfig) -> Stage:
    files, names = [], []
    for source in settings.sources:
        # A source that cannot be read is a problem that preflight reports with all the others.
        with suppress(DataError, StorageError):
            files += [] if source.path is None else find_files(source.path)
            if source.dataset is not None:
                names.append(hub.content_identity(source.dataset))
    reads = [file for file in files if isinstance(file, Path)]
    names += [f"{file} {file_fingerprint(file)}" for file in files if not isinstance(file, Path)]
    tokenizer = settings.tokenizer.path
    local = tokenizer is not None and resolve(settings.storage, tokenizer).is_dir()
    return Stage(
        "prepare",
        settings,
        run_prepare,
        reads=(*reads, *([resolve(settings.storage, tokenizer)] if tokenizer and local else [])),
        writes=(resolve(settings.storage, settings.output),),
        names=(*names, *([tokenizer] if tokenizer and not local else [])),
    )


def _training(
    name: str,
    settings: SFTConfig | DPOConfig,
    job: Callable[..., object],
    *,
    before: Sequence[Stage],
) -> Stage:
    models = [] if settings.model.path is None else [settings.model.path]
    models += settings.loss.references if isinstance(settings, DPOConfig) else ()
    written = {path for stage in before for path in (*stage.writes, *stage.may_write)}
    places = {model: resolve(settings.storage, model) for model in models}
    folders = [model for model, place in places.items() if place.is_dir() or place in written]
    hub = [model for model in models if model not in folders and may_be_hub_name(model)]
    reads = [resolve(settings.storage, settings.store)]
    reads += [place for model, place in places.items() if model not in hub]
    return Stage(
        name,
        settings,
        job,
        reads=tuple(reads),
        writes=(resolve(settings.storage, settings.output),),
        # Random weights, or a pretrained model whose vocabulary grew.
        may_write=(resolve(settings.storage, INITIAL_FOLDER),) if name == "sft" else (),
        names=tuple(hub),
    )


def _export(name: str, settings: ExportConfig) -> Stage:
    return Stage(
        name,
        settings,
        run_export,
        reads=(resolve(settings.storage, settings.run),),
        writes=(resolve(settings.storage, settings.output),),
    )


def _evaluate(settings: EvaluateConfig) -> Stage:
    folders = [settings.store, *settings.models.values()]
    folders += [] if settings.reference is None else [settings.reference]
    return Stage(
        "evaluate",
        settings,
        run_evaluate,
        reads=tuple(resolve(settings.storage, folder) for folder in folders),
        writes=(resolve(settings.storage, settings.output),),
    )


def _serve(config: PipelineConfig, settings: ServeConfig) -> Stage:
    store = resolve(config.storage, config.prepare.output if config.prepare else "store")

    def job(settings: ServeConfig, run: Run) -> None:
        run.log_params(settings.model_dump(mode="json"))
        show_answers(settings, store=store, seed=config.seed)

    return Stage("serve", settings, job, reads=(store, resolve(config.storage, settings.model)))


@dataclass
class Records:
    """The records of a storage, and the fingerprints of what is to run now."""

    storage: str
    package: Path = PACKAGE
    """Whose code counts."""

    fingerprints: dict[str, str] = field(default_factory=dict)
    _written: dict[Path, str] = field(default_factory=dict)

    def plan(self, stages: list[Stage]) -> None:
        """Fingerprint every stage: its settings, its inputs, and the package's code.

        An input that an earlier stage writes counts by that stage's fingerprint, so that all can
        be known before the first stage runs.
        """
        for stage in stages:
            # Where runs are kept bends nothing; a model's registered name is an effect.
            hidden = {"storage": True, "tracking": {"uri", "experiment"}}
            shown = stage.settings.model_dump(mode="json", exclude=hidden)
            # A file's name counts too: it may say whose statements it holds.
            inputs = [
                (path.name, self._written.get(path) or fingerprint(path)) for path in stage.reads
            ]
            known = [
                stage.name,
                code_fingerprint(*_MODULES[type(stage.settings)], package=self.package),
                shown,
                inputs,
                stage.names,
            ]
            digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
            self.fingerprints[stage.name] = digest
            self._written.update(dict.fromkeys(stage.writes + stage.may_write, digest))

    def find(self, stage: Stage) -> Record | None:
        """What is remembered of a stage, whatever its settings were."""
        try:
            return Record(**json.loads(self._path(stage).read_text(encoding="utf-8")))
        except (FileNotFoundError, json.JSONDecodeError, TypeError):
            return None

    def finished(self, stage: Stage) -> Record | None:
        """The record of a stage that need not run again."""
        record = self.find(stage)
        if (
            record is None
            or not stage.writes
            or record.status != "finished"
            or record.fingerprint != self.fingerprints[stage.name]
            or record.outputs != contents(stage)
        ):
            return None
        return record

    def settings_of(self, stage: Stage) -> Any:
        """What the job of a stage gets. Checkpoints that are kept elsewhere go into a folder of the
        stage's fingerprint, since object storage renames nothing large: changed settings find none
        there, and a run that was set aside can still be exported, for its recipe names its own."""
        settings = stage.settings
        elsewhere = getattr(getattr(settings, "checkpoint", None), "storage", None)
        if elsewhere is None:
            return settings
        place = place_below(elsewhere, self.fingerprints[stage.name][:12])
        checkpoint = settings.checkpoint.model_copy(update={"storage": place})
        return settings.model_copy(update={"checkpoint": checkpoint})

    def start(self, stage: Stage) -> list[Path]:
        """Note that a stage runs. A stage that was cut short goes on where it stopped.

        Returns:
            Folders that the stage wrote under other settings, as they are called now.
        """
        record, moved = self.find(stage), []
        if record is not None and record.fingerprint != self.fingerprints[stage.name]:
            moved = [_set_aside(folder) for folder in stage.writes if folder.exists()]
        self.save(stage, Record(self.fingerprints[stage.name], "started"))
        return moved

    def save(self, stage: Stage, record: Record) -> None:
        """Remember a stage."""
        path = self._path(stage)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(vars(record)) + "\n")

    def _path(self, stage: Stage) -> Path:
        return Path(self.storage) / ".stages" / f"{stage.name}.json"


def contents(stage: Stage) -> dict[str, str]:
    """What the folders that a stage writes hold now."""
    return {folder.name: fingerprint(folder) for folder in stage.writes}


def fingerprint(path: Path) -> str:
    """Of a file its content, of a token store its manifest, of any other folder its files' names,
    sizes and times; empty where there is nothing."""
    if path.is_file():
        return file_fingerprint(path)
    manifest = path / "manifest.json"
    if manifest.is_file():
        return file_fingerprint(manifest)
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file():
            status = file.stat()
            line = f"{file.relative_to(path)} {status.st_size} {status.st_mtime_ns}\n"
            digest.update(line.encode())
    return digest.hexdigest() if path.is_dir() else ""


def _set_aside(folder: Path) -> Path:
    """Rename a folder. It may be days of training, so nothing is ever deleted here."""
    names = itertools.chain(["previous"], (f"previous-{number}" for number in itertools.count(2)))
    places = (folder.with_name(f"{folder.name}.{name}") for name in names)
    return folder.rename(next(place for place in places if not place.exists()))
