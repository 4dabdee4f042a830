"""Files and recipes to a store, on a real local Ray."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from metaalign.config import PrepareConfig
from metaalign.data.prepare import prepare_store, run_prepare
from metaalign.errors import DataError
from metaalign.store.token_store import TokenStore
from metaalign.tracking import open_run
from tests.test_parts import alpaca, write

PAIR = {
    "system_info": "Be brief.",
    "turns": [{"role": "user", "text": "Capital of Peru?"}],
    "responses": [
        {"text": "Lima.", "scores": {"preference": 1}},
        {"text": "It is Lima.", "scores": {"preference": 0}},
    ],
    "tags": {"split": "train"},
}


pytestmark = pytest.mark.usefixtures("ray_cluster")


def config_of(storage: Path, **settings: Any) -> PrepareConfig:
    base = {"storage": str(storage), "tokenizer": {"vocabulary_size": 300}}
    return PrepareConfig.model_validate({**base, **settings})


@pytest.fixture
def mixed(tmp_path: Path) -> list[dict[str, str]]:
    """Sources of two formats, one bad row among them."""
    first = write(tmp_path / "b.jsonl", [*alpaca(30), {"instruction": "x", "output": ""}])
    second = write(tmp_path / "a.jsonl", [PAIR])
    third = write(tmp_path / "c.jsonl", alpaca(30, start=30))
    return [{"path": str(file)} for file in (first, second, third)]


def content(store: TokenStore) -> dict[str, bytes]:
    files = [*store.path.glob("*.arrow"), *store.path.glob("tokenizer/*"), store.path / "manifest.json"]  # fmt: skip  # noqa: E501
    return {file.name: file.read_bytes() for file in files}


def test_every_source_row_is_an_example_or_quarantined_in_the_settings_order(
    tmp_path: Path, mixed: list[dict[str, str]]
) -> None:
    store = prepare_store(config_of(tmp_path, sources=mixed, held_out_ratio=0.3))
    columns = store.columns
    names = [Path(file).name for file in columns.source_file]
    assert names == ["b.jsonl"] * 30 + ["a.jsonl"] + ["c.jsonl"] * 30
    assert columns.source_row.tolist() == [*range(30), 0, *range(30)]
    for i in (0, 29, 31, 60):
        number = i if i < 30 else i - 1
        assert store.template.decode(store.response(i, 0)) == f"Answer {number}."
    assert columns.order_score[columns.response_start[30] :][:2].tolist() == [1.0, 0.0]
    totals = [
        (entry["rows"], entry["used"], entry["quarantined"], entry["examples"])
        for entry in store.manifest["ledger"]
    ]
    assert totals == [(31, 30, 1, 30), (1, 1, 0, 1), (30, 30, 0, 30)]
    (file,) = (store.path / "quarantine").iterdir()
    bad = json.loads(file.read_text())
    assert (bad["file"], bad["row"], bad["reason"]) == (mixed[0]["path"], 30, "a response is empty")
    assert {"train", "held_out"} == set(columns.split)
    assert not (store.path / "parts").exists()
    assert not list(tmp_path.glob(".store*"))


def test_the_same_settings_write_the_same_bytes(
    tmp_path: Path, mixed: list[dict[str, str]]
) -> None:
    config = config_of(tmp_path, sources=mixed, held_out_ratio=0.3)
    first = content(prepare_store(config))
    again = content(prepare_store(config.model_copy(update={"output": "again"})))
    assert first == again


def test_a_finished_store_is_reused_until_its_input_changes(
    tmp_path: Path, mixed: list[dict[str, str]]
) -> None:
    config = config_of(tmp_path, sources=mixed[:2], held_out_ratio=0)
    manifest = tmp_path / "store" / "manifest.json"
    first = prepare_store(config)
    written = manifest.stat().st_ino
    assert prepare_store(config).fingerprint == first.fingerprint
    assert manifest.stat().st_ino == written
    write(Path(mixed[1]["path"]), [{**PAIR, "system_info": "Be kind."}])
    second = prepare_store(config)
    assert manifest.stat().st_ino != written
    assert second.fingerprint != first.fingerprint
    assert len(second) == 31


def test_too_many_bad_rows_fail_the_job_and_stay_to_be_looked_at(tmp_path: Path) -> None:
    bad = [{"instruction": "x", "output": ""}] * 2
    (tmp_path / "{run} {0}").mkdir()  # a message that is formatted twice would stumble over it
    file = write(tmp_path / "{run} {0}" / "rows.jsonl", [*alpaca(8), *bad])
    with pytest.raises(DataError) as error:
        prepare_store(config_of(tmp_path, sources=[{"path": str(file)}], max_bad_ratio=0.19))
    message = str(error.value)
    assert message.startswith(f"{file}: 2 of 10 rows are bad, more than max_bad_ratio 0.19 allows.")
    assert f"{file}, row 8: a response is empty" in message
    (kept,) = (tmp_path / "store-quarantine").iterdir()
    assert len(kept.read_text().splitlines()) == 2
    assert not (tmp_path / "store").exists()
    settings = {"sources": [{"path": str(file)}], "max_bad_ratio": 0.2, "held_out_ratio": 0}
    assert len(prepare_store(config_of(tmp_path, **settings))) == 8


def test_an_empty_held_out_split_is_an_error_where_one_was_asked_for(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", alpaca(3))
    with pytest.raises(DataError, match=r"the split held_out is empty: none of 3 examples"):
        prepare_store(config_of(tmp_path, sources=[{"path": str(file)}], held_out_ratio=0.001))
    with pytest.raises(DataError, match=r"no example is left in the split train"):
        prepare_store(config_of(tmp_path, sources=[{"path": str(file)}], held_out_ratio=0.999))


def test_training_rows_that_repeat_held_out_ones_are_left_out_and_counted(tmp_path: Path) -> None:
    def row(query: str, split: str) -> dict[str, Any]:
        turns = [{"role": "user", "text": query}]
        return {**PAIR, "turns": turns, "tags": {"split": split}}

    asked = [f"What is the name of the river that flows through city number {i}" for i in range(9)]
    rows = [row(each, "held_out") for each in asked[:2]] + [row(each, "train") for each in asked]
    rows += [row(f"{asked[0]}?", "train"), row(asked[1].upper(), "train")]
    file = write(tmp_path / "rows.jsonl", rows)
    config = config_of(tmp_path, sources=[{"path": str(file)}], near_duplicates=0.95)
    store = prepare_store(config)
    (entry,) = store.manifest["ledger"]
    counts = {name: entry[name] for name in ("examples", "duplicates", "train", "held_out")}
    assert counts == {"examples": 13, "duplicates": 4, "train": 7, "held_out": 2}
    assert store.columns.source_row.tolist() == [0, 1, *range(4, 11)]


def test_another_folder_is_not_overwritten(tmp_path: Path, mixed: list[dict[str, str]]) -> None:
    (tmp_path / "store").mkdir()
    with pytest.raises(DataError, match="holds no token store; remove it, or give another"):
        prepare_store(config_of(tmp_path, sources=mixed))


def test_recipes_write_examples_and_cases(tmp_path: Path) -> None:
    config = config_of(tmp_path, recipes={"examples": 200, "cases": 20}, max_bad_ratio=0)
    store = prepare_store(config)
    assert store.columns.source_row.tolist() == list(range(220))
    assert store.columns.split.tolist() == ["train"] * 200 + ["held_out"] * 20
    assert sum(store.manifest["counts"]["recipe"].values()) == 220
    cases = (store.path / "cases.jsonl").read_text().splitlines()
    assert len(cases) >= 100
    assert all(json.loads(case) for case in cases)


def test_the_run_gets_settings_counts_and_the_manifest(
    tmp_path: Path, mixed: list[dict[str, str]]
) -> None:
    config = config_of(tmp_path, sources=mixed, held_out_ratio=0.3)
    with open_run(config.tracking, storage=config.storage, name="prepare") as run:
        store = run_prepare(config, run)
    client = MlflowClient(run.uri)
    logged = client.get_run(run.id).data
    assert logged.params["tokenizer.vocabulary_size"] == "300"
    assert logged.metrics["prepare/rows"] == 62
    assert logged.metrics["prepare/quarantined"] == 1
    assert logged.metrics["prepare/examples"] == 61
    total = store.columns.prompt_length.sum() + store.columns.response_length.sum()
    assert logged.metrics["prepare/tokens"] == total - len(store)
    assert logged.tags["store_fingerprint"] == store.fingerprint
    assert "store/manifest.json" in {each.path for each in client.list_artifacts(run.id, "store")}


def test_real_files_with_a_pretrained_tokenizer_keep_what_is_longer_than_its_context(
    tmp_path: Path, shared_data: Path
) -> None:
    sources = [
        {"path": f"{shared_data}/demo_formats/alpaca_en_demo.json"},
        {"path": f"{shared_data}/personas/politically-*.jsonl", "format": "personas"},
    ]
    tokenizer = {"path": f"{shared_data}/stories260k"}
    store = prepare_store(config_of(tmp_path, sources=sources, tokenizer=tokenizer))
    columns = store.columns
    assert store.template.vocabulary_size == 516
    assert [entry["rows"] for entry in store.manifest["ledger"]] == [999, 2000]
    assert [entry["quarantined"] for entry in store.manifest["ledger"]] == [0, 0]
    single = columns.response_count == 1
    assert int(single.sum()) == 999
    longest = (
        columns.prompt_length[single] + columns.response_length[columns.response_start[:-1][single]]
    )
    # FACTS: 39% of alpaca's samples are longer than the model's 512; they stay in the store.
    assert 0.35 < np.mean(longest > 512) < 0.43
    # Both sides of an opposed pair share a conversation, not a meta-prompt.
    pairs = np.flatnonzero(~single)
    _, counts = np.unique(columns.conversation[pairs], return_counts=True)
    assert set(counts) == {2}
    assert len(np.unique(columns.meta_prompt[pairs])) == 2
    held = columns.split == "held_out"
    assert not set(columns.conversation[held]) & set(columns.conversation[~held])


def test_tiers_too_long_for_the_context_are_printed_with_their_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = " ".join(f"{number * 7919}" for number in range(40))
    rows = [*alpaca(8), {"instruction": long, "output": "y"}]
    source = {"path": str(write(tmp_path / "rows.jsonl", rows)), "user_info": "I am Ana."}
    store = prepare_store(config_of(tmp_path, sources=[source], context=80, held_out_ratio=0))
    assert store.manifest["too_long"]["count"] == 1
    told = " ".join(capsys.readouterr().out.split())
    assert "1 examples have tiers too long for a context of 80: " in told
    assert "rows.jsonl, row 8: user_info" in told


def test_the_two_stages_share_no_training_example_and_all_held_out_ones(
    tmp_path: Path, shared_data: Path
) -> None:
    file = write(tmp_path / "rows.jsonl", alpaca(200))
    settings: dict[str, Any] = {
        "sources": [{"path": str(file)}],
        "recipes": {"examples": 2000, "cases": 20},
        "held_out_ratio": 0.2,
        "tokenizer": {"path": f"{shared_data}/stories260k"},
    }
    taken: list[set[tuple[str, int]]] = []
    held: list[set[tuple[str, int]]] = []
    texts: list[set[tuple[bytes, bytes]]] = []
    for share in ([0, 0.5], [0.5, 1], [0, 1]):
        store = prepare_store(config_of(tmp_path, share=share, output=f"s{share[0]}", **settings))
        columns = store.columns
        place = list(zip(columns.source_file.tolist(), columns.source_row.tolist(), strict=True))
        written = [n for n, (name, _) in enumerate(place) if name == "recipes"]
        texts.append(
            {
                (bytes(store.prompt(n)), bytes(store.response(n, 0)))
                for n in written
                if columns.split[n] == "train"
            }
        )
        is_held = (columns.split == "held_out").tolist()
        taken.append({each for each, out in zip(place, is_held, strict=True) if not out})
        held.append({each for each, out in zip(place, is_held, strict=True) if out})
        rows = {row for name, row in taken[-1] if name == "recipes"}
        assert {row ^ 1 for row in rows} == rows, "both sides of a flip are of one share"
        elsewhere = sum(entry["elsewhere"] for entry in store.manifest["ledger"])
        assert elsewhere == (0 if share == [0, 1] else 2200 + 20 - len(store))
    first, second, both = taken
    assert not first & second
    assert first | second == both
    assert held[0] == held[1] == held[2]
    assert 800 < len(first) < 1400
    assert texts[0]
    assert not texts[0] & texts[1], "the same prompt and answer, written twice"


@pytest.mark.parametrize("share", [[0.5, 0.5], [0.6, 0.2], [-0.1, 1], [0, 1.5]])
def test_a_share_that_takes_nothing_is_refused(tmp_path: Path, share: list[float]) -> None:
    with pytest.raises(ValueError, match="two shares, the first below the second"):
        config_of(tmp_path, share=share, sources=[{"path": "/a"}])
