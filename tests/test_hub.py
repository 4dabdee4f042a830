"""Data sets of the Hugging Face library: folders of files, saved ones, and what is not there."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest

from metaalign.config import PrepareConfig
from metaalign.config.prepare import DatasetConfig
from metaalign.data.sources.hub import content_identity, fingerprint, load, name_of
from metaalign.data.sources.outcome import BadRow
from metaalign.data.work.parts import plan_parts, read_part, split_parts
from metaalign.errors import DataError
from tests.example_rows import to_row

ROOT = Path(__file__).resolve().parents[1]
ROWS = [
    {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}]}
    for i in range(5)
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def folder_of_files(tmp_path: Path) -> str:
    folder = tmp_path / "talks"
    folder.mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (folder / "train-0.jsonl").write_text(lines)
    (folder / "test-0.jsonl").write_text(lines[: lines.index("\n") + 1])
    return str(folder)


def saved(tmp_path: Path, *, splits: bool) -> str:
    rows = datasets.Dataset.from_list(ROWS)
    found = datasets.DatasetDict({"train": rows, "test": rows.select([0])}) if splits else rows
    found.save_to_disk(str(tmp_path / "saved"))
    return str(tmp_path / "saved")


def prepared(
    tmp_path: Path, dataset: dict[str, Any], format: str = "messages"
) -> tuple[list[dict[str, Any]], list[BadRow]]:
    config = PrepareConfig.model_validate(
        {"storage": str(tmp_path), "sources": [{"dataset": dataset}], "held_out_ratio": 0}
    )
    parts = plan_parts(config)
    assert [part.format for part in parts] == [format]
    folder = tmp_path / "building"
    folder.mkdir()
    (part,) = split_parts(parts, folder)
    reads = list(read_part(part))
    made = [to_row(example) for read in reads for example in read.examples]
    return made, [row for read in reads for row in read.bad]


@pytest.mark.parametrize("kind", ["files", "saved", "saved splits"])
def test_a_data_set_becomes_examples_that_name_it(tmp_path: Path, kind: str) -> None:
    name = (
        folder_of_files(tmp_path) if kind == "files" else saved(tmp_path, splits="splits" in kind)
    )
    examples, _ = prepared(tmp_path, {"name": name})
    assert [example["responses"][0]["text"] for example in examples] == [f"a{i}" for i in range(5)]
    shown = f"datasets/{name.strip('/')}/train"
    assert [example["source"] for example in examples] == [
        {"file": shown, "row": row} for row in range(5)
    ]


@pytest.mark.parametrize("kind", ["files", "saved splits"])
def test_a_split_is_chosen(tmp_path: Path, kind: str) -> None:
    name = folder_of_files(tmp_path) if kind == "files" else saved(tmp_path, splits=True)
    assert len(load(DatasetConfig(name=name, split="test"))) == 1


def test_a_split_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"saved': it has no split 'dev'; it has train, test"):
        load(DatasetConfig(name=saved(tmp_path, splits=True), split="dev"))
    with pytest.raises(DataError, match=r"Unknown split"):
        load(DatasetConfig(name=folder_of_files(tmp_path), split="dev"))


def test_a_data_set_that_is_a_script_is_told(tmp_path: Path) -> None:
    (tmp_path / "talks").mkdir()
    (tmp_path / "talks" / "talks.py").write_text("import datasets\n")
    with pytest.raises(DataError, match=r"talks': Dataset scripts are no longer supported"):
        load(DatasetConfig(name=str(tmp_path / "talks")))


@pytest.mark.parametrize("place", [0, 150])
@pytest.mark.parametrize("column", ["output", "when"])
def test_a_value_that_cannot_be_read_costs_its_own_row(
    tmp_path: Path, place: int, column: str
) -> None:
    outputs, days = [b"a"] * 200, [1] * 200
    if column == "output":
        outputs[place] = b"\xff"
    else:
        days[place] = 2**31 - 1
    columns = {
        "instruction": [f"q{row}" for row in range(200)],
        "output": pa.array(outputs).view(pa.string()),
        "when": pa.array(days, pa.date32()),
    }
    datasets.Dataset(pa.table(columns)).save_to_disk(str(tmp_path / "saved"))
    dataset = {"name": str(tmp_path / "saved")}
    made, bad = prepared(tmp_path, dataset, format="alpaca")
    assert len(made) == 199
    assert [(row.row, row.reason.partition(": ")[0]) for row in bad] == [
        (place, "a value cannot be read")
    ]
    first = content_identity(DatasetConfig(**dataset))
    assert first == content_identity(DatasetConfig(**dataset))


def test_a_data_set_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset '.*none': "):
        load(DatasetConfig(name=str(tmp_path / "none")))


def test_a_fingerprint_is_that_of_the_values() -> None:
    one, same = datasets.Dataset.from_list(ROWS), datasets.Dataset.from_list(ROWS)
    assert fingerprint(one) == fingerprint(same)
    assert fingerprint(one) != fingerprint(datasets.Dataset.from_list(ROWS[::-1]))


def test_a_name_shows_configuration_split_and_revision() -> None:
    config = DatasetConfig(name="org/talks", config="en", split="test", revision="v2")
    assert name_of(config) == "datasets/org/talks/en/test/v2"


def test_one_value_among_thousands_changes_the_fingerprint(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list(ROWS * 500)
    rows.save_to_disk(str(tmp_path / "saved"))
    saved = load(DatasetConfig(name=str(tmp_path / "saved")))
    again = load(DatasetConfig(name=str(tmp_path / "saved")))
    assert fingerprint(saved) == fingerprint(again)
    changed = datasets.Dataset.from_list([*ROWS * 499, *ROWS[:4], ROWS[0]])
    assert fingerprint(changed) != fingerprint(rows)


def test_a_process_finds_the_same_fingerprint_and_reads_once(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    first = fingerprint(load(DatasetConfig(name=str(tmp_path / "saved"))))
    code = (
        "import sys; from metaalign.config.prepare import DatasetConfig; "
        "from metaalign.data.sources.hub import fingerprint, load; "
        "print(fingerprint(load(DatasetConfig(name=sys.argv[1]))))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "saved")]
    other = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert other.stdout.strip() == first
    (file,) = (tmp_path / "saved").glob("*.arrow")
    datasets.Dataset.from_list(ROWS[::-1]).save_to_disk(str(tmp_path / "new"))
    (new,) = (tmp_path / "new").glob("*.arrow")
    file.unlink()
    new.rename(file)  # the library's own fingerprint is still that of the old rows
    assert fingerprint(load(DatasetConfig(name=str(tmp_path / "saved")))) != first
