"""Examples to token ids and index rows."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from metaalign.examples import Example, Response, Source, Turn
from metaalign.store.encoder import Encoded, SegmentEncoder, stable_hash
from metaalign.store.tokenizer import train_tokenizer
from metaalign.template import Template, prompt_segments

PAIR = Example(
    system_info="Be brief.",
    turns=(Turn("user", "Hi"), Turn("assistant", "Yo"), Turn("user", "Lima?", "I am Ana.")),
    responses=(Response("Si", {"help": 1.0}, True), Response("No way", {"harm": 0.5}, False)),
    source=Source("a.jsonl", 7),
    weight=2.0,
    margin=0.5,
    order_by="help",
    tags={"recipe": "priority", "split": "held_out"},
    conversation="c",
)
SINGLE = Example(turns=(Turn("user", "Hi"),), responses=(Response("Yo"),), source=Source("b", 0))


@pytest.fixture(scope="module")
def template() -> Template:
    return train_tokenizer(["Be brief.", "I am Ana."], 300)


@pytest.fixture(scope="module")
def encoded(template: Template) -> Encoded:
    return SegmentEncoder(template).encode([PAIR, SINGLE])


def test_an_example_is_its_prompt_once_then_each_response(
    template: Template, encoded: Encoded
) -> None:
    prompt = prompt_segments(
        system_info=PAIR.system_info, user_info=PAIR.user_info, turns=PAIR.turns
    )
    expected = [
        *template.prompt_ids(prompt),
        *template.response_ids("Si"),
        *template.response_ids("No way"),
        *template.prompt_ids(prompt[1:2]),
        *template.response_ids("Yo"),
    ]
    assert encoded.tokens.tolist() == expected
    assert encoded.tokens.dtype == np.int32


def test_lengths_are_those_of_the_parts(encoded: Encoded) -> None:
    first, second = encoded.index.to_pylist()
    # Byte-level with hardly a merge: "Be brief." and "I am Ana." are trained to be few tokens,
    # the rest is one token a letter; each segment has its control token, "Yo" its end token.
    assert first["segment_tiers"] == [0, 2, 3, 1, 2]
    assert first["segment_lengths"][1:3] == [1 + 2, 1 + 2 + 1]
    assert first["prompt_length"] == sum(first["segment_lengths"]) + 1
    assert first["response_lengths"][0] == 2 + 1
    assert second["prompt_length"] == 1 + 2 + 1
    assert second["offset"] == first["prompt_length"] + sum(first["response_lengths"])
    assert len(encoded.tokens) == second["offset"] + 4 + 3


def test_judgements_and_origin_reach_the_index(encoded: Encoded) -> None:
    first, second = encoded.index.to_pylist()
    assert first["objectives"] == ["help", "harm"]
    assert first["scores"] == [[1.0, None], [None, 0.5]]
    assert (first["order_by"], first["desirable"]) == ("help", [True, False])
    assert (first["weight"], first["margin"]) == (2.0, 0.5)
    assert (first["source_file"], first["source_row"]) == ("a.jsonl", 7)
    assert (first["split"], second["split"]) == ("held_out", "train")
    assert dict(first["tags"]) == {"recipe": "priority", "split": "held_out"}
    assert (second["scores"], second["desirable"]) == ([[]], [None])


def test_hashes_tell_meta_prompts_and_conversations_apart(encoded: Encoded) -> None:
    first, second = encoded.index.to_pylist()
    assert first["meta_prompt"] == stable_hash("Be brief.", "")
    assert second["meta_prompt"] == stable_hash("", "")
    assert first["conversation"] == stable_hash("c")
    assert second["conversation"] == stable_hash("Hi")  # no key of its own: its first query
    assert stable_hash("ab", "") != stable_hash("a", "b")
    # blake2b of eight bytes, so that a store made today is grouped alike tomorrow
    assert stable_hash() == int.from_bytes(bytes.fromhex("e4a6a0577479b2b4"), "little", signed=True)


class Counting(Template):
    """Remembers what it was asked to encode."""

    asked: list[str]

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        self.asked = [*vars(self).get("asked", []), *texts]
        return super().encode_texts(texts)


def test_each_distinct_segment_is_encoded_once(template: Template) -> None:
    encoder = SegmentEncoder(counting := Counting(template.tokenizer))
    counting.asked.clear()  # the golden renderings
    encoder.encode([PAIR, SINGLE, PAIR])
    encoder.encode([SINGLE])
    assert sorted(counting.asked) == sorted(
        {"Be brief.", "Hi", "Yo", "Lima?", "I am Ana.", "Si", "No way"}
    )


def test_no_examples_are_no_tokens(template: Template) -> None:
    encoded = SegmentEncoder(template).encode([])
    assert (len(encoded.tokens), encoded.index.num_rows) == (0, 0)


def test_what_repeats_is_remembered_however_much_else_there_is(
    template: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metaalign.store.encoder._CACHED_CHARACTERS", 100)
    encoder = SegmentEncoder(counting := Counting(template.tokenizer))
    examples = [
        replace(SINGLE, system_info="Always the same.", turns=(Turn("user", f"{i} " * 30),))
        for i in range(20)
    ]
    encoded = [encoder.encode([example]) for example in examples]
    assert counting.asked.count("Always the same.") == 1
    assert len(encoder._ids) + len(encoder._older) < 12
    for example, one in zip(examples, encoded, strict=True):
        assert (one.tokens == SegmentEncoder(template).encode([example]).tokens).all()
