"""A store is complete or absent; what is read is what was written, without a copy."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from metaalign.errors import DataError, TemplateError
from metaalign.examples import Example, Response, Source, Turn
from metaalign.store.encoder import SegmentEncoder
from metaalign.store.token_store import TokenStore
from metaalign.store.tokenizer import train_tokenizer
from metaalign.store.writer import StoreWriter
from metaalign.template import prompt_segments
from tests.conftest import tiny_examples

MakeStore = Callable[..., TokenStore]


@pytest.fixture(scope="module")
def store(make_store: MakeStore, tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return make_store(tmp_path_factory.mktemp("stores") / "store")


def test_tokens_read_are_those_of_the_example_and_cover_exactly_its_responses(
    store: TokenStore,
) -> None:
    examples = tiny_examples()
    assert len(store) == len(examples)
    for i, example in enumerate(examples):
        segments = prompt_segments(
            system_info=example.system_info, user_info=example.user_info, turns=example.turns
        )
        assert store.prompt(i).tolist() == store.template.prompt_ids(segments)
        for k, response in enumerate(example.responses):
            assert store.response(i, k).tolist() == store.template.response_ids(response.text)


def test_reading_copies_nothing_and_cannot_write(store: TokenStore) -> None:
    prompt = store.prompt(3)
    assert prompt.base is not None
    assert not prompt.flags.writeable
    assert prompt.dtype == np.int32
    first, second = store.response(0, 0), store.response(0, 1)
    step = first.__array_interface__["data"][0] + 4 * len(first)
    assert step == second.__array_interface__["data"][0]  # they lie side by side on disk


def test_a_response_that_is_not_there_is_refused(store: TokenStore) -> None:
    assert store.columns.response_count[0] == 2
    for position in (2, -1):
        with pytest.raises(IndexError, match=f"example 0 has no response {position}"):
            store.response(0, position)


def test_columns_are_the_index(store: TokenStore) -> None:
    columns = store.columns
    # tiny_examples: a pair (best first), three (the middle one best), one that nobody judged
    assert columns.response_count[:6].tolist() == [2, 3, 1, 2, 3, 1]
    assert columns.response_start[:4].tolist() == [0, 2, 5, 6]
    assert columns.order_score[:5].tolist() == [1.0, 0.0, 1.0, 2.0, 0.0]
    assert np.isnan(columns.order_score[5])
    assert columns.desirable.tolist() == [-1] * len(columns.desirable)
    assert columns.split[:4].tolist() == ["train", "train", "train", "held_out"]
    assert columns.source_file[5] == "tiny.jsonl"
    assert columns.source_row.tolist() == list(range(48))
    first, second, third = columns.conversation[:3]
    assert first == second
    assert second != third
    i = 4  # no System Info, User Info, an earlier exchange, the query
    tiers = columns.segment_tier[columns.segment_start[i] : columns.segment_start[i + 1]]
    assert tiers.tolist() == [1, 2, 3, 2]
    sums = np.add.reduceat(columns.segment_length, columns.segment_start[:-1])
    assert (sums == columns.prompt_length - 1).all()
    assert len(store.prompt(i)) == columns.prompt_length[i]


def test_order_scores_follow_each_examples_own_objective(
    make_store: MakeStore, tmp_path: Path
) -> None:
    def example(order_by: str, *scores: dict, desirable: tuple = (None, None)) -> Example:
        texts = zip("ab", scores, desirable, strict=True)
        return Example(
            turns=(Turn("user", "q"),),
            responses=tuple(Response(*text) for text in texts),
            source=Source("f", 0),
            order_by=order_by,
        )

    examples = [
        example("y", {"x": 1.0, "y": 2.0}, {"y": 3.0}),
        example("x", {"x": 4.0}, {"y": 5.0, "x": None}, desirable=(True, False)),
        example("z", {"x": 6.0}, {"x": 7.0}),
        example("x", {}, {}),
        example("y", {"z": 8.0}, {"y": 9.0}),
    ]
    columns = make_store(tmp_path / "store", examples).columns
    nan = np.nan
    expected = [2.0, 3.0, 4.0, nan, nan, nan, nan, nan, nan, 9.0]
    assert np.array_equal(columns.order_score, expected, equal_nan=True)
    assert columns.desirable.tolist() == [-1, -1, 1, 0, -1, -1, -1, -1, -1, -1]


def test_tags_and_counts_are_kept(store: TokenStore) -> None:
    assert store.tags(3) == {"recipe": "tiny", "split": "held_out"}
    assert store.manifest["counts"] == {
        "split": {"train": 36, "held_out": 12},
        "recipe": {"tiny": 48},
        "source": {"tiny.jsonl": 48},
    }
    assert store.manifest["template_fingerprint"] == store.template.fingerprint
    histogram = store.manifest["token_histogram"]
    prompts = sum(histogram[tier]["tokens"] for tier in ("system_info", "user_info", "user_query"))
    total = int(store.columns.prompt_length.sum() + store.columns.response_length.sum())
    assert prompts + histogram["response"]["tokens"] == total - len(store)


def test_shards_keep_the_order_in_which_they_were_added(tmp_path: Path) -> None:
    examples = tiny_examples(9)
    template = train_tokenizer(["Which city?"], 300)
    encoder = SegmentEncoder(template)
    with StoreWriter(tmp_path / "store") as writer:
        for start in (0, 4, 8):
            writer.add(encoder.encode(examples[start : start + 4]))
        store = writer.finish(template, fingerprint="f", ledger=[{"source": "s", "rows": 9}])
    assert store.columns.source_row.tolist() == list(range(9))
    assert [store.template.decode(store.response(i, 0)) for i in (3, 4, 8)] == [
        examples[i].responses[0].text for i in (3, 4, 8)
    ]
    assert sorted(file.name for file in (tmp_path / "store").glob("tokens-*")) == [
        "tokens-000000-00000.arrow", "tokens-000001-00000.arrow", "tokens-000002-00000.arrow",
    ]  # fmt: skip
    assert json.loads((tmp_path / "store/ledger.json").read_text()) == [{"source": "s", "rows": 9}]
    assert [each.name for each in tmp_path.iterdir()] == ["store"]


def test_a_writer_that_does_not_finish_leaves_nothing(tmp_path: Path) -> None:
    template = train_tokenizer(["a"], 300)
    with StoreWriter(tmp_path / "store") as writer:
        writer.add(SegmentEncoder(template).encode(tiny_examples(2)))
        assert [each.name for each in tmp_path.iterdir()] == [writer.folder.name]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match="does not exist; run the prepare job first"):
        TokenStore.open(tmp_path / "store")


def test_no_example_is_no_store(tmp_path: Path) -> None:
    template = train_tokenizer(["a"], 300)
    with StoreWriter(tmp_path / "store") as writer, pytest.raises(DataError, match="no example"):
        writer.finish(template, fingerprint="f")


def test_a_finished_store_is_replaced_and_any_other_folder_is_not(
    make_store: MakeStore, tmp_path: Path
) -> None:
    make_store(tmp_path / "store", tiny_examples(4))
    assert len(make_store(tmp_path / "store", tiny_examples(8))) == 8
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="holds no token store; remove it"):
        make_store(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_what_cannot_be_opened_says_what_to_do(make_store: MakeStore, tmp_path: Path) -> None:
    path = make_store(tmp_path / "store", tiny_examples(4)).path
    manifest = path / "manifest.json"
    good = manifest.read_text()
    manifest.write_text(json.dumps({**json.loads(good), "schema_version": 99}))
    with pytest.raises(DataError, match="format version 99, expected 1; prepare it again"):
        TokenStore.open(path)
    manifest.write_text("{")
    with pytest.raises(DataError, match=r"manifest\.json cannot be read"):
        TokenStore.open(path)
    manifest.write_text(good)
    (path / "tokens-000000-00000.arrow").write_bytes(b"not arrow")
    with pytest.raises(DataError, match="the token store is damaged"):
        TokenStore.open(path)
    manifest.unlink()
    with pytest.raises(DataError, match="holds no finished token store; run the prepare job"):
        TokenStore.open(path)


def test_a_changed_tokenizer_is_refused(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", tiny_examples(4))
    train_tokenizer(["other text"], 280).tokenizer.save_pretrained(str(store.path / "tokenizer"))
    with pytest.raises(TemplateError, match="renders another template"):
        _ = TokenStore.open(store.path).template


def test_splits_are_those_of_the_tags(make_store: MakeStore, tmp_path: Path) -> None:
    held = [replace(each, tags={"split": "held_out"}) for each in tiny_examples(3)]
    store = make_store(tmp_path / "store", [*held, replace(tiny_examples(1)[0], tags={})])
    assert store.columns.split.tolist() == ["held_out"] * 3 + ["train"]
