"""What the manifest says of a store's examples, against numbers counted by hand."""

from dataclasses import replace

import pytest

from metaalign.examples import Example, Response, Source, Turn
from metaalign.store.encoder import SegmentEncoder
from metaalign.store.summary import Summary
from metaalign.store.tokenizer import train_tokenizer
from metaalign.template import Template


@pytest.fixture(scope="module")
def template() -> Template:
    """Without merges: a byte is a token."""
    return train_tokenizer([], 270)


def example(user_info: str, query: str, *answers: str, **tags: str) -> Example:
    return Example(
        user_info=user_info,
        turns=(Turn("user", query),),
        responses=tuple(map(Response, answers)),
        source=Source("a.jsonl", 0),
        tags=tags,
    )


EXAMPLES = [
    example("me", "abc", "x", "yz", recipe="priority"),
    example("me", "d", "x", split="held_out"),
    example("", "efgh", "x", "y"),
]
"""Prompts of 3 + 4 + 1, 3 + 2 + 1 and 5 + 1 tokens; answers of 2 + 3, 2 and 2 + 2."""


@pytest.mark.parametrize("pieces", [[3], [1, 2], [1, 1, 1]])
def test_tallies_are_the_same_in_any_pieces(template: Template, pieces: list[int]) -> None:
    summary, rest = Summary(), iter(EXAMPLES)
    for count in pieces:
        encoded = SegmentEncoder(template).encode([next(rest) for _ in range(count)])
        summary.add(encoded.index)
    assert summary.examples == 3
    assert summary.counts() == {
        "split": {"train": 2, "held_out": 1},
        "recipe": {"priority": 1},
        "source": {"a.jsonl": 3},
    }
    assert summary.token_histogram() == {
        "system_info": {"tokens": 0},
        "user_info": {"tokens": 6, "4": 2},
        "user_query": {"tokens": 11, "2": 1, "4": 1, "8": 1},
        "response": {"tokens": 11, "2": 4, "4": 1},
    }
    # sequences of 10, 11, 8, 8 and 8 tokens
    assert summary.sequence_histogram() == {"longest": 11, "8": 3, "16": 2}
    assert summary.meta_prompts() == 2
    # 8 + 2 and 8 + 3, 6 + 2, 6 + 2 and 6 + 2; two prompts stand again, of 8 and of 6 tokens, and
    # the 3 of "me".
    assert summary.shared_prefix() == {"responses": 14 / 45, "meta_prompt": 17 / 45}


@pytest.mark.parametrize(
    ("context", "long"),
    [
        (8, []),
        (7, [{"system_info": 0, "user_info": 3, "user_query": 4}]),
        (
            5,
            [
                {"system_info": 0, "user_info": 3, "user_query": 4},
                {"system_info": 0, "user_info": 3, "user_query": 2},
                {"system_info": 0, "user_info": 0, "user_query": 5},
            ],
        ),
    ],
)
def test_tiers_that_alone_exceed_a_context_are_told_by_tier_and_row(
    template: Template, context: int, long: list[dict[str, int]]
) -> None:
    """With the token that opens the response: 8, 6 and 6."""
    summary = Summary(context)
    summary.add(SegmentEncoder(template).encode(EXAMPLES).index)
    place = {"source_file": "a.jsonl", "source_row": 0}
    first = [{**place, **each} for each in long]
    assert summary.too_long() == {"context": context, "count": len(long), "first": first}
    assert Summary().too_long() == {}


def test_earlier_turns_could_be_dropped_and_do_not_count(template: Template) -> None:
    earlier = (Turn("user", "a" * 50), Turn("assistant", "b" * 50))
    turns = (*earlier, *EXAMPLES[0].turns)
    summary = Summary(8)
    summary.add(SegmentEncoder(template).encode([replace(EXAMPLES[0], turns=turns)]).index)
    assert summary.too_long()["count"] == 0
