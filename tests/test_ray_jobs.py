"""What a user submits: every shipped config loads, every documented command is one that works."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from metaalign.config import (
    DPOConfig,
    EvaluateConfig,
    ExportConfig,
    PipelineConfig,
    PrepareConfig,
    ServeConfig,
    SFTConfig,
    load_config,
)

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "ray_jobs" / "configs").glob("*.yaml"))
JOBS: dict[str, type[BaseModel]] = {
    "prepare": PrepareConfig,
    "sft": SFTConfig,
    "dpo": DPOConfig,
    "export": ExportConfig,
    "evaluate": EvaluateConfig,
    "serve": ServeConfig,
    "pipeline": PipelineConfig,
}


def commands(path: Path) -> list[tuple[str, Path, list[str]]]:
    """Every `python -m ray_jobs.JOB CONFIG.yaml ...` that a file shows: job, config, overrides."""
    text = re.sub(r"\\\n[#\s]*", "", path.read_text(encoding="utf-8"))
    found = re.findall(r"python -m ray_jobs\.(\w+)\s+(\S+\.yaml)([^\n`]*)", text)
    return [
        (job, ROOT / config.removeprefix("/opt/metaalign/"), shlex.split(rest.split(" #")[0]))
        for job, config, rest in found
    ]


DOCUMENTED = [ROOT / "README.md", *CONFIGS, *sorted((ROOT / "ray_jobs").glob("*.py"))]
DOCUMENTED += [ROOT / "cluster" / "ray.yaml", ROOT / "cluster" / "slurm.sbatch"]
DOCUMENTED += sorted((ROOT / "docs").glob("*.md"))
SHOWN = [(path.name, *command) for path in DOCUMENTED for command in commands(path)]


@pytest.mark.parametrize(
    ("file", "job", "config", "overrides"), SHOWN, ids=lambda value: str(value)[-60:]
)
def test_a_documented_command_loads(
    file: str, job: str, config: Path, overrides: list[str]
) -> None:
    assert (ROOT / "ray_jobs" / f"{job}.py").is_file(), f"{file} names the job {job}"
    given = [each for each in overrides if "=" in each]
    if not any(each.startswith("storage=") for each in given):
        given.append("storage=/DIR")
    load_config(JOBS[job], config, given)


def test_every_job_and_every_config_is_documented_by_a_command() -> None:
    assert {job for _, job, _, _ in SHOWN} == set(JOBS)
    shown = {config.name for _, _, config, _ in SHOWN}
    assert {path.name for path in CONFIGS} <= shown | {"demo.yaml"}


def test_every_job_has_a_file_and_every_file_is_a_job() -> None:
    files = {path.stem for path in (ROOT / "ray_jobs").glob("*.py")} - {"__init__"}
    assert files == set(JOBS)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


def test_wrong_settings_end_a_job_with_every_problem_and_exit_code_2() -> None:
    done = run(
        "ray_jobs.export",
        "ray_jobs/configs/export.yaml",
        "storage=relative",
        "outptu=x",
        "checkpoint=0",
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "ConfigError: export.yaml: 3 problems" in done.stderr
    assert "outptu: unknown setting, got 'x' (did you mean output?)" in done.stderr


def test_a_failure_on_purpose_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    done = run(
        "ray_jobs.prepare",
        "ray_jobs/configs/hh_prepare.yaml",
        f"storage={tmp_path}/storage",
        f"sources.0.path={tmp_path}/*.jsonl",
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("DataError: ")]
    assert len(lines) == 1
    assert f"'{tmp_path}/*.jsonl' matches no file" in lines[0]
