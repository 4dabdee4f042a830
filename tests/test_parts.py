"""What a job would read, planned before any task; what one task leaves behind."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from metaalign.config import PrepareConfig
from metaalign.data.work.ledger import read_quarantine, read_sample
from metaalign.data.work.parts import (
    plan_parts,
    read_part,
    split_parts,
)
from metaalign.data.work.passes import read_ledger, survey_part, write_part
from metaalign.errors import DataError
from metaalign.store.encoder import SegmentEncoder
from metaalign.store.tokenizer import train_tokenizer
from metaalign.store.writer import StoreWriter


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
    assert [(part.span.start, part.span.stop) for part in parts[3:] if part.span] == [
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
    assert "who.jsonl: the persona 'who' has no known User Info" in problems[2]
    assert "none/*.json' matches no file" in problems[3]


def test_a_part_leaves_counts_quarantine_and_a_sample(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [*alpaca(3), {"instruction": "a", "output": ""}])
    parts = plan_parts(plan(tmp_path, sources=[{"path": str(file)}], held_out_ratio=0))
    survey_part(parts[0], 0, folder=tmp_path)
    assert set(read_sample(tmp_path, 1)) == {
        f"{text} {i}{end}" for i in range(3) for text, end in (("Question", "?"), ("Answer", "."))
    }
    assert read_ledger(parts, tmp_path) == [
        {
            "source": str(file), "formats": ["alpaca"], "files": 1, "rows": 4, "used": 3,
            "quarantined": 1, "examples": 3, "unanswered": 0, "elsewhere": 0, "duplicates": 0,
            "unfit": 0, "untaught": 0, "written": 3, "train": 3, "held_out": 0, "plain": 0,
            "checked_texts": 0, "lost_texts": 0, "lost": [],
            "reasons": {"a response is empty": 1}, "ignored": {}, "notices": {}, "unfits": {},
                "untaughts": {},
        }
    ]  # fmt: skip
    (bad,) = read_quarantine(tmp_path, [0], limit=9)
    assert (bad.file, bad.row, bad.reason) == (str(file), 3, "a response is empty")
    assert read_quarantine(tmp_path, [1], limit=9) == []
    # a task that is run twice writes the same files twice
    survey_part(parts[0], 0, folder=tmp_path)
    assert len(read_quarantine(tmp_path, [0], limit=9)) == 1


def test_the_tokenizer_never_sees_the_held_out_split(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", alpaca(60))
    parts = plan_parts(plan(tmp_path, sources=[{"path": str(file)}], held_out_ratio=0.5))
    survey_part(parts[0], 0, folder=tmp_path)
    sample = set(read_sample(tmp_path, 1))
    examples = [example for read in read_part(parts[0]) for example in read.examples]
    held = [example for example in examples if example.tags["split"] == "held_out"]
    assert 0 < len(held) < 60
    assert not sample & {example.responses[0].text for example in held}
    assert len(sample) == 2 * (60 - len(held))


def test_a_part_may_have_no_example(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [{"instruction": "a", "output": ""}])
    parts = plan_parts(plan(tmp_path, sources=[{"path": str(file)}]))
    write_part(parts[0], 0, tmp_path, SegmentEncoder(train_tokenizer(["a"], 300)))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["parts", "quarantine", "rows.jsonl"]
    assert read_sample(tmp_path, 1) == []


def test_a_file_is_read_in_ranges_and_gives_the_same_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [*alpaca(400), {"instruction": "a", "output": ""}, *alpaca(300, start=400)]
    file = write(tmp_path / "rows.jsonl", rows)
    encoder = SegmentEncoder(train_tokenizer(["Question Answer"], 300))
    stores, ledgers = [], []
    for size, count in ((1 << 30, 1), (5_000, 9)):
        monkeypatch.setattr("metaalign.data.work.parts._PART_BYTES", size)
        planned = plan_parts(plan(tmp_path, sources=[{"path": str(file)}]))
        with StoreWriter(tmp_path / f"store-{count}") as writer:
            parts = split_parts(planned, writer.folder)
            assert len(parts) == count
            for number, part in reversed([*enumerate(parts)]):
                write_part(part, number, writer.folder, encoder)
            ledgers.append(read_ledger(parts, writer.folder))
            assert read_quarantine(writer.folder, range(count), limit=9)[0].row == 400
            stores.append(writer.finish(encoder.template, fingerprint="f", ledger=ledgers[-1]))
    one, many = stores
    assert ledgers[0] == ledgers[1]
    assert len(one) == len(many) == 700
    assert one.columns.source_row.tolist() == many.columns.source_row.tolist()
    for i in range(700):
        assert (one.prompt(i) == many.prompt(i)).all()
        assert (one.response(i, 0) == many.response(i, 0)).all()
    assert len(one.manifest["shards"]) == 1
    assert len(many.manifest["shards"]) == 9
    told = [{**store.manifest, "shards": None} for store in (one, many)]
    assert told[0] == told[1]


def test_a_file_that_changes_under_the_job_is_an_error(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", alpaca(3))
    (part,) = plan_parts(plan(tmp_path, sources=[{"path": str(file)}]))
    write(file, alpaca(4))
    with pytest.raises(DataError, match=r"rows\.jsonl: the file was changed while the job ran"):
        next(read_part(part))


def test_a_ledger_can_be_written_whatever_keys_rows_have_and_names_the_most_common(
    tmp_path: Path,
) -> None:
    rows = [{"instruction": "a", "output": "b", "\ud800": 1, f"key {i}": 1} for i in range(30)]
    file = write(tmp_path / "rows.jsonl", rows)
    parts = plan_parts(plan(tmp_path, sources=[{"path": str(file)}]))
    survey_part(parts[0], 0, folder=tmp_path)
    (entry,) = read_ledger(parts, tmp_path)
    assert json.dumps(entry, ensure_ascii=False).encode("utf-8")
    assert len(entry["ignored"]) == 20
    assert next(iter(entry["ignored"].items())) == ("?", 30)
