"""What a job would read, planned before any task; what one task leaves behind."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from metaalign.config import PrepareConfig
from metaalign.data.parts import plan_parts, read_ledger, read_part, read_quarantine, read_sample
from metaalign.errors import DataError


def write(file: Path, rows: Sequence[Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def alpaca(count: int, start: int = 0) -> list[dict[str, str]]:
    return [
        {"instruction": f"Question {i}?", "output": f"Answer {i}."}
        for i in range(start, start + count)
    ]


def plan(folder: Path, **settings: Any) -> PrepareConfig:
    return PrepareConfig.model_validate({"storage": str(folder), **settings})


def test_parts_follow_the_settings_then_the_file_names(tmp_path: Path) -> None:
    for name in ("b", "a", "z"):
        write(tmp_path / f"{name}.jsonl", alpaca(2))
    config = plan(
        tmp_path,
        sources=[{"path": f"{tmp_path}/z.jsonl"}, {"path": f"{tmp_path}/[ab].jsonl"}],
        recipes={"examples": 6000, "cases": 400},
    )
    parts = plan_parts(config)
    assert [Path(part.name).name for part in parts[:3]] == ["z.jsonl", "a.jsonl", "b.jsonl"]
    # 6,000 to train on and a held-out one a case.
    assert [(part.start, part.stop) for part in parts[3:]] == [
        (0, 2500), (2500, 5000), (5000, 6400),
    ]  # fmt: skip
    assert {part.format for part in parts} == {"alpaca", "recipes"}


def test_every_file_that_cannot_be_read_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    write(tmp_path / "odd.jsonl", [{"xyz": 1}])
    write(tmp_path / "who.jsonl", [{"statement": "a", "answer_matching_behavior": " Yes"}])
    sources = [{"path": f"{tmp_path}/*.jsonl"}, {"path": f"{tmp_path}/none/*.json"}]
    with pytest.raises(DataError) as error:
        plan_parts(plan(tmp_path, sources=sources))
    problems = str(error.value).split("\n  ")
    assert len(problems) == 4
    assert "empty.jsonl: the file is empty" in problems[0]
    assert "odd.jsonl: unknown format" in problems[1]
    assert "who.jsonl: no words are known for the persona 'who'" in problems[2]
    assert "none/*.json' matches no file" in problems[3]


def test_a_part_leaves_counts_quarantine_and_a_sample(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [*alpaca(3), {"instruction": "a", "output": ""}])
    parts = plan_parts(plan(tmp_path, sources=[{"path": str(file)}], held_out_ratio=0))
    table = read_part(parts[0], 0, tmp_path, sampled=True)
    assert table.column("position").to_pylist() == [0, 1, 2]
    assert set(read_sample(tmp_path, 1)) == {
        f"{text} {i}{end}" for i in range(3) for text, end in (("Question", "?"), ("Answer", "."))
    }
    assert read_ledger(parts, tmp_path) == [
        {
            "source": str(file), "formats": ["alpaca"], "files": 1, "rows": 4, "used": 3,
            "quarantined": 1, "examples": 3, "unanswered": 0, "train": 3, "held_out": 0,
            "reasons": {"a response is empty": 1}, "ignored": {},
        }
    ]  # fmt: skip
    (bad,) = read_quarantine(tmp_path, [0], limit=9)
    assert (bad.file, bad.row, bad.reason) == (str(file), 3, "a response is empty")
    assert read_quarantine(tmp_path, [1], limit=9) == []
    # a task that is run twice writes the same files twice
    read_part(parts[0], 0, tmp_path, sampled=True)
    assert len(read_quarantine(tmp_path, [0], limit=9)) == 1


def test_the_tokenizer_never_sees_the_held_out_split(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", alpaca(60))
    parts = plan_parts(plan(tmp_path, sources=[{"path": str(file)}], held_out_ratio=0.5))
    rows = read_part(parts[0], 0, tmp_path, sampled=True).to_pylist()
    sample = set(read_sample(tmp_path, 1))
    held = [row for row in rows if {"key": "split", "value": "held_out"} in row["tags"]]
    assert 0 < len(held) < 60
    assert not sample & {row["responses"][0]["text"] for row in held}
    assert len(sample) == 2 * (60 - len(held))


def test_a_part_may_have_no_example(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [{"instruction": "a", "output": ""}])
    parts = plan_parts(plan(tmp_path, sources=[{"path": str(file)}]))
    assert read_part(parts[0], 0, tmp_path, sampled=False).num_rows == 0
    assert read_sample(tmp_path, 1) == []


def test_a_ledger_can_be_written_whatever_keys_rows_have_and_names_the_most_common(
    tmp_path: Path,
) -> None:
    rows = [{"instruction": "a", "output": "b", "\ud800": 1, f"key {i}": 1} for i in range(30)]
    file = write(tmp_path / "rows.jsonl", rows)
    parts = plan_parts(plan(tmp_path, sources=[{"path": str(file)}]))
    read_part(parts[0], 0, tmp_path, sampled=False)
    (entry,) = read_ledger(parts, tmp_path)
    assert json.dumps(entry, ensure_ascii=False).encode("utf-8")
    assert len(entry["ignored"]) == 20
    assert next(iter(entry["ignored"].items())) == ("?", 30)
