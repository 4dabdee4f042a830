"""Shards come in parts, in any order and as often as tasks are run; a killed job loses no store."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from metaalign.store.encoder import SegmentEncoder
from metaalign.store.token_store import TokenStore
from metaalign.store.tokenizer import train_tokenizer
from metaalign.store.writer import ShardWriter, StoreWriter
from metaalign.template import Template
from tests.conftest import tiny_examples

DAY_S = 24 * 3600


@pytest.fixture(scope="module")
def template() -> Template:
    return train_tokenizer(["Which city?"], 300)


def write(folder: Path, template: Template, part: int, start: int, stop: int) -> None:
    shards, encoder = ShardWriter(folder, part), SegmentEncoder(template)
    for example in tiny_examples()[start:stop]:
        shards.add(encoder.encode([example]))
    shards.close()


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.arrow")}


def test_a_part_fills_shards_and_gives_the_same_files_again(
    template: Template, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metaalign.store.writer._SHARD_TOKENS", 300)
    with StoreWriter(tmp_path / "store") as writer:
        write(writer.folder, template, 1, 20, 48)
        write(writer.folder, template, 0, 0, 20)
        first = files(writer.folder)
        assert len([name for name in first if name.startswith("tokens-000001-")]) > 2
        write(writer.folder, template, 1, 20, 48)
        assert files(writer.folder) == first
        (writer.folder / "tokens-000001-00000.arrow.1234abcd.part").write_bytes(b"half")
        store = writer.finish(template, fingerprint="f")
    assert store.columns.source_row.tolist() == list(range(48))
    for i, example in enumerate(tiny_examples()):
        texts = [response.text for response in example.responses]
        assert [store.template.decode(store.response(i, k)) for k in range(len(texts))] == texts
    assert not list(store.path.glob("*.part"))
    assert not list(store.path.glob("index-*"))


def test_a_store_that_was_about_to_be_replaced_when_its_job_was_killed_is_taken_back(
    make_store: Callable[..., TokenStore], tmp_path: Path
) -> None:
    path = make_store(tmp_path / "store", tiny_examples(4)).path
    os.replace(path, tmp_path / ".store.building-1234abcd-replaced")
    with pytest.raises(KeyError), StoreWriter(path):
        raise KeyError
    assert len(TokenStore.open(path)) == 4


def test_what_a_killed_job_left_goes_after_a_day_and_what_still_grows_stays(
    tmp_path: Path,
) -> None:
    old, alive = (tmp_path / f".store.building-{name}" for name in ("old", "alive"))
    for folder in (old, alive):
        (folder / "parts").mkdir(parents=True)
    past = time.time() - 2 * DAY_S
    for folder in (old, old / "parts", alive):
        os.utime(folder, (past, past))
    with StoreWriter(tmp_path / "store"):
        assert not old.exists()
        assert alive.exists()
