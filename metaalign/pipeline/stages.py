"""The inputs and outputs of a stage, its fingerprint, and the record by which it is skipped.

An example of a record, `.stages/sft.json` in the storage:

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
"""The code that determines a training run. The launchers, which start and restart the workers, do
not; the table of losses does."""

_MODULES: dict[type, tuple[str, ...]] = {
    PrepareConfig: PREPARE_MODULES,
    SFTConfig: _TRAINING,
    DPOConfig: _TRAINING,
    ExportConfig: ("train/export.py",),
    EvaluateConfig: ("evaluate/suites.py",),
    ServeConfig: (),  # it runs every time
}
"""The code on which a stage's output depends, besides what it imports: see `source_code`. Code that
reads data counts only for prepare, since training reads a store, which has its own fingerprint."""


@dataclass(frozen=True)
class Stage:
    """One job of the pipeline."""

    name: str
    settings: Any
    job: Callable[[Any, Run], object]
    reads: tuple[Path, ...]
    """Files and folders that must exist or be written by an earlier stage."""

    writes: tuple[Path, ...] = ()
    """Folders that it writes. If there are none, the stage runs every time."""

    may_write: tuple[Path, ...] = ()
    """Folders that it writes only with some settings."""

    names: tuple[str, ...] = ()
    """Inputs that are not local paths, such as a model of the hub, some with a fingerprint."""


@dataclass
class Record:
    """The last run of a stage, as stored in the storage."""

    fingerprint: str
    status: str
    seconds: float = 0.0
    run: str = ""
    outputs: dict[str, str] = field(default_factory=dict)
    """Fingerprint of each output folder at the end, by the folder's name."""


def stages_of(config: PipelineConfig) -> list[Stage]:
    """The stages that the config contains, in order."""
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
        # preflight reports a source that cannot be read, together with all other problems.
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
        # SFT writes it for random weights, or if the vocabulary of a pretrained model grows.
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
    """The records of a storage, and the fingerprints of the stages that will run."""

    storage: str
    package: Path = PACKAGE
    """Package whose code is part of the fingerprints."""

    fingerprints: dict[str, str] = field(default_factory=dict)
    _written: dict[Path, str] = field(default_factory=dict)

    def plan(self, stages: list[Stage]) -> None:
        """Fingerprint every stage: its settings, its inputs, and the package's code.

        For an input that an earlier stage writes, that stage's fingerprint is used, so that all
        fingerprints are known before the first stage runs.
        """
        for stage in stages:
            # The tracking server has no effect on outputs. A registered model name is an output.
            hidden = {"storage": True, "tracking": {"uri", "experiment"}}
            shown = stage.settings.model_dump(mode="json", exclude=hidden)
            # A file's name is included, since it may name the persona of its statements.
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
        """The record of a stage, whatever its settings were; None if there is none."""
        try:
            return Record(**json.loads(self._path(stage).read_text(encoding="utf-8")))
        except (FileNotFoundError, json.JSONDecodeError, TypeError):
            return None

    def finished(self, stage: Stage) -> Record | None:
        """The record of a stage that need not run again; None if it must run."""
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
        """The settings that the stage's job gets.

        If `checkpoint.storage` is set, checkpoints go into a folder named by the stage's
        fingerprint, since object storage cannot rename large folders. A changed stage finds no
        checkpoints there, and an earlier run that was renamed can still be exported, because its
        recipe holds the folder's name.
        """
        settings = stage.settings
        elsewhere = getattr(getattr(settings, "checkpoint", None), "storage", None)
        if elsewhere is None:
            return settings
        place = place_below(elsewhere, self.fingerprints[stage.name][:12])
        checkpoint = settings.checkpoint.model_copy(update={"storage": place})
        return settings.model_copy(update={"checkpoint": checkpoint})

    def start(self, stage: Stage) -> list[Path]:
        """Record that a stage runs. An interrupted stage continues from where it stopped.

        Returns:
            New names of the folders that the stage wrote earlier, with another fingerprint.
        """
        record, moved = self.find(stage), []
        if record is not None and record.fingerprint != self.fingerprints[stage.name]:
            moved = [_set_aside(folder) for folder in stage.writes if folder.exists()]
        self.save(stage, Record(self.fingerprints[stage.name], "started"))
        return moved

    def save(self, stage: Stage, record: Record) -> None:
        """Write the record of a stage."""
        path = self._path(stage)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(vars(record)) + "\n")

    def _path(self, stage: Stage) -> Path:
        return Path(self.storage) / ".stages" / f"{stage.name}.json"


def contents(stage: Stage) -> dict[str, str]:
    """The current fingerprints of the folders that a stage writes, by name."""
    return {folder.name: fingerprint(folder) for folder in stage.writes}


def fingerprint(path: Path) -> str:
    """Hash of a file's content, of a token store's manifest, or of the names, sizes and times of
    the files in any other folder. Empty if the path does not exist."""
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
    """Rename a folder and return its new path. It is not deleted: it may hold days of training."""
    names = itertools.chain(["previous"], (f"previous-{number}" for number in itertools.count(2)))
    places = (folder.with_name(f"{folder.name}.{name}") for name in names)
    return folder.rename(next(place for place in places if not place.exists()))
