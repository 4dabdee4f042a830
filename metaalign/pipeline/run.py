"""Runs the stages in order: checks all first, skips unchanged ones, writes the report.

Uses only a stage's inputs, outputs and job; a stage's own work is in the other rooms.
"""

import json
import time
from pathlib import Path

import ray
from rich.console import Console

from metaalign.config import PipelineConfig, resolve
from metaalign.folders import write_whole
from metaalign.pipeline.job import clock
from metaalign.pipeline.preflight import check
from metaalign.pipeline.showcase import console, next_steps, rates
from metaalign.pipeline.stages import Record, Records, Stage, contents, stages_of
from metaalign.tracking import Run, open_run


def run_pipeline(config: PipelineConfig, run: Run) -> None:
    """Run every stage that has not already finished with the same settings, inputs and code.

    Writes `report.json` in the storage: the evaluation's report, and `seconds` by stage.

    Raises:
        ConfigError: lists every problem found before the first stage.
        MetaAlignError: a stage raised it.
    """
    out, stages, records = console(), stages_of(config), Records(config.storage)
    check(config, stages)
    run.log_params(config.model_dump(mode="json"))
    records.plan(stages)
    cpus, gpus = (ray.cluster_resources().get(kind, 0) for kind in ("CPU", "GPU"))
    out.print(f"{config.name}: {len(stages)} stages, {cpus:g} CPUs, {gpus:g} GPUs")
    out.print(f"storage {config.storage}", soft_wrap=True)
    seconds: dict[str, float] = {}
    for number, stage in enumerate(stages, 1):
        out.rule(f"[bold]{number}/{len(stages)} {stage.name}", align="left", style="dim")
        record = records.finished(stage)
        if record is None:
            record = _run_stage(config, stage, records, run, out)
        else:
            out.print(f"{stage.name}: unchanged, skipped; it took {clock(record.seconds)}")
        seconds[stage.name] = record.seconds
        run.set_tags({f"stage.{stage.name}": record.run})
        _write_report(config, seconds)
    _close(config, seconds, run, out)


def _run_stage(
    config: PipelineConfig, stage: Stage, records: Records, parent: Run, out: Console
) -> Record:
    for folder in records.start(stage):
        out.print(f"its settings, inputs or code changed; its earlier output is now {folder}")
    started = time.monotonic()
    fingerprint = records.fingerprints[stage.name]
    with open_run(
        config.tracking,
        storage=config.storage,
        name=stage.name,
        parent=parent,
        resume_key=f"{stage.name}/{fingerprint}",
    ) as child:
        stage.job(records.settings_of(stage), child)
    seconds = round(time.monotonic() - started, 1)
    out.print(f"{stage.name}: done in {clock(seconds)}")
    record = Record(fingerprint, "finished", seconds, child.id, contents(stage))
    records.save(stage, record)
    return record


def _write_report(config: PipelineConfig, seconds: dict[str, float]) -> dict:
    report = {}
    if config.evaluate is not None and "evaluate" in seconds:
        written = resolve(config.storage, config.evaluate.output) / "report.json"
        report = json.loads(written.read_text(encoding="utf-8"))
    report["seconds"] = {**seconds, "total": round(sum(seconds.values()), 1)}
    path = Path(config.storage) / "report.json"
    write_whole(path, json.dumps(report, indent=2) + "\n")
    return report


def _close(config: PipelineConfig, seconds: dict[str, float], run: Run, out: Console) -> None:
    report = _write_report(config, seconds)
    run.log_metrics({f"seconds/{stage}": spent for stage, spent in report["seconds"].items()})
    run.log_artifact(Path(config.storage) / "report.json")
    out.rule(f"[bold]done in {clock(report['seconds']['total'])}", align="left", style="dim")
    if "following" in report:
        out.print(rates(report))
    out.print(next_steps(config.storage), soft_wrap=True)
