"""Errors in settings name what a user would set, one line a problem."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from metaalign.config import DPOConfig, ExportConfig, PrepareConfig, SFTConfig, load_config
from metaalign.errors import ConfigError

HEADS: dict[type[BaseModel], str] = {
    SFTConfig: "storage: /s\nmodel: {path: a}\n",
    DPOConfig: "storage: /s\nmodel: {path: a}\n",
    ExportConfig: "storage: /s\n",
    PrepareConfig: "storage: /s\nsources: [{path: /a}]\n",
}


def problems_of(folder: Path, job: type[BaseModel], *overrides: str) -> list[str]:
    file = folder / "job.yaml"
    file.write_text(HEADS[job])
    with pytest.raises(ConfigError) as error:
        load_config(job, file, overrides)
    head, *lines = str(error.value).splitlines()
    assert head == f"job.yaml: {len(lines)} problem{'s' if len(lines) > 1 else ''}"
    return [line.strip() for line in lines]


@pytest.mark.parametrize(
    ("job", "override", "problem"),
    [
        (
            SFTConfig,
            "workers.num_workers=0",
            "workers.num_workers: should be greater than or equal to 1, got 0",
        ),
        (
            SFTConfig,
            "workers.num_workers=[0, 4]",
            "workers.num_workers.0: should be greater than or equal to 1, got 0",
        ),
        (
            SFTConfig,
            "workers.num_workers=[1, 2, 3]",
            "workers.num_workers: should have at most 2 items after validation, not 3, got "
            "[1, 2, 3]",
        ),
        (
            SFTConfig,
            "workers.num_workers=two",
            "workers.num_workers: should be a valid integer, unable to parse string as an integer, "
            "or be a list, got 'two'",
        ),
        (
            ExportConfig,
            "checkpoint=old",
            "checkpoint: should be 'newest' or 'best', or be a valid integer, unable to parse "
            "string as an integer, got 'old'",
        ),
        (ExportConfig, "checkpoint=0", "checkpoint: should be greater than or equal to 1, got 0"),
        (
            DPOConfig,
            "model.lora.target_modules=7",
            "model.lora.target_modules: should be 'all-linear', or be a list, got 7",
        ),
        (ExportConfig, "output=a/b", r"output: should match pattern '^\w[\w.-]*$', got 'a/b'"),
    ],
)
def test_a_setting_of_several_types_has_one_line_and_no_name_of_a_type(
    tmp_path: Path, job: type[BaseModel], override: str, problem: str
) -> None:
    assert problems_of(tmp_path, job, override) == [problem]


def test_two_settings_of_several_types_have_a_line_each(tmp_path: Path) -> None:
    lines = problems_of(
        tmp_path, DPOConfig, "workers.num_workers=two", "model.lora.target_modules={}", "seed=-1"
    )
    assert [line.partition(":")[0] for line in lines] == [
        "model.lora.target_modules",
        "workers.num_workers",
        "seed",
    ]


@pytest.mark.parametrize(
    ("override", "value", "meant"),
    [
        ("sources.0.assistant_turn=last", "'last'", "sources.0.assistant_turns"),
        ("sources.0.correction.wir=imhi", "'imhi'", "sources.0.correction.wire"),
        ("teachers.strong.max_retrys=1", "1", "teachers.strong.max_retries"),
    ],
)
def test_a_mistyped_setting_of_an_item_gets_the_nearest_one(
    tmp_path: Path, override: str, value: str, meant: str
) -> None:
    teacher = "teachers.strong={base_url: 'http://a', model: m}"
    (line,) = problems_of(tmp_path, PrepareConfig, teacher, override)
    assert f"unknown setting, got {value} (did you mean {meant}?)" in line
