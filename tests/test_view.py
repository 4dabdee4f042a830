"""What people see of a store: every tier, control token, mask and count, in text and as a page."""

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from metaalign.data.view import choose_examples, look, main, write_page
from metaalign.errors import DataError
from metaalign.examples import Example, Response, Source, Turn
from metaalign.store.token_store import TokenStore


@pytest.fixture(scope="module")
def store(
    make_store: Callable[..., TokenStore], tmp_path_factory: pytest.TempPathFactory
) -> TokenStore:
    pair = Example(
        system_info="Be brief.",
        user_info="I am Ana.",
        turns=(Turn("user", "Hi"), Turn("assistant", "Yo"), Turn("user", "<|response|> Lima?")),
        responses=(
            Response("It is Lima.", {"preference": 0.0}, False),
            Response("Lima.", {"preference": 1.0}, True),
        ),
        source=Source("/data/a.jsonl", 7),
        tags={"recipe": "priority", "split": "train", "conflict": ""},
    )
    long = Example(
        turns=(Turn("user", "word " * 900),),
        responses=(Response("Done."),),
        source=Source("/data/b.jsonl", 0),
        tags={"split": "held_out"},
    )
    return make_store(tmp_path_factory.mktemp("view") / "store", [pair] * 3 + [long])


def shown(store: TokenStore, *examples: int, width: int = 100) -> Console:
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
    console.print(look(store, examples))
    return console


def test_an_example_shows_tiers_control_tokens_and_judgements(store: TokenStore) -> None:
    text = shown(store, 0).export_text()
    for line in (
        "example 0 · a.jsonl, row 7",
        "<|system_info|>Be brief.",
        "<|user_info|>I am Ana.",
        "<|user_query|>Hi",
        "<|response|>Yo<|end|>",
        "<|user_query|><|response|> Lima?",
        "response 1 of 2 · score 0 · undesirable",
        "It is Lima.<|end|>",
        "response 2 of 2 · score 1 · desirable · SFT trains this one",
        "recipe priority · split train",
    ):
        assert line in text


def test_what_a_user_typed_is_told_from_a_control_token_and_losses_are_underlined(
    store: TokenStore,
) -> None:
    styled = shown(store, 0).export_text(styles=True)
    assert "\x1b[37;44m<|user_query|>\x1b[0m\x1b[34m<|response|> Lima?" in styled
    assert "\x1b[4;32mLima.\x1b[0m\x1b[4;37;42m<|end|>" in styled
    assert "\x1b[32mYo\x1b[0m\x1b[37;42m<|end|>" in styled  # said before: no loss


def test_the_manifest_and_the_lengths_are_told(store: TokenStore) -> None:
    text = shown(store).export_text()
    assert "train 3, held_out 1" in text
    assert "2 different" in text
    prompts, responses = store.columns.prompt_length, store.columns.response_length
    assert f"longest {prompts[3] + responses[6]:,}" in text
    counts = [line.split("│")[2].strip() for line in text.splitlines() if "█" in line]
    assert sum(map(int, counts)) == 7


def test_a_long_text_is_cut_in_its_middle(store: TokenStore) -> None:
    text = shown(store, 3, width=2_000).export_text()
    assert "[... 3,800 characters ...]" in text


def test_the_chosen_examples_are_of_many_kinds(store: TokenStore) -> None:
    assert choose_examples(store, 2) == [0, 3]
    assert choose_examples(store, 9) == [0, 1, 2, 3]


def test_the_page_holds_the_same(store: TokenStore, tmp_path: Path) -> None:
    write_page(store, tmp_path / "page.html", [0])
    page = (tmp_path / "page.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "&lt;|system_info|&gt;" in page
    assert "SFT trains this one" in page


def test_the_command_shows_a_store_or_says_what_is_wrong(store: TokenStore, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "metaalign.data.view", str(store.path), "--example", "3"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "example 3 · b.jsonl, row 0" in told
    main([str(store.path), "--page", str(tmp_path / "page.html")])
    assert (tmp_path / "page.html").exists()
    with pytest.raises(SystemExit, match="--example: there is no example 9; the last one is 3"):
        main([str(store.path), "--example", "9"])
    with pytest.raises(SystemExit, match="does not exist; run the prepare job first"):
        main([str(tmp_path / "none")])


def test_a_store_of_an_earlier_version_is_not_shown_by_halves(store: TokenStore) -> None:
    manifest = {name: value for name, value in store.manifest.items() if name != "meta_prompts"}
    older = TokenStore(store.path, manifest, store._index)
    with pytest.raises(DataError, match="prepare it again to look at it"):
        look(older, [])
