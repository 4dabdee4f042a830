"""Keys that change what a row means: read, or the row is refused; never a mere note."""

import json
from typing import Any

import pytest

from tests.rows import ASKED, OTHER, TALK, message, read, reason

TWO = [*ASKED, message("assistant", "draft"), message("user", "Q?"), message("assistant", "A")]


@pytest.mark.parametrize(
    "flags",
    [
        {"weight": 0}, {"loss": False}, {"loss": 0.0}, {"loss_weight": 0.0}, {"train": False},
        {"training": False}, {"trainable": False}, {"loss_mask": 0}, {"weight": 0, "train": True},
    ],
)  # fmt: skip
def test_an_answer_that_is_flagged_off_is_not_trained(flags: dict[str, Any]) -> None:
    talk = [*TWO[:1], {**TWO[1], **flags}, *TWO[2:]]
    result = read("messages", {"messages": talk})
    assert [example.responses[0].text for example in result.examples] == ["A"]
    assert result.ignored == {}


@pytest.mark.parametrize(
    ("flags", "weight"), [({"loss": False}, 0), ({"weight": 0}, 0), ({"train": False}, 0),
                          ({"loss_weight": 0.5}, 0.5), ({}, 1)],
)  # fmt: skip
def test_an_exchange_has_the_flags_of_its_answer(flags: dict[str, Any], weight: float) -> None:
    talk = [{"input": "Hi", "output": "draft", **flags}, {"input": "Q?", "output": "A"}]
    result = read("messages", {"conversation": talk})
    trained = {each.responses[0].text: each.weight for each in result.examples}
    assert trained == ({"draft": weight, "A": 1} if weight else {"A": 1})
    assert result.ignored == {}
    lists = {"conversation": [["Hi", "a"], ["Q?", "A"]]}
    assert [each.weight for each in read("messages", lists).examples] == [1, 1]


def test_a_list_beside_the_messages_says_which_are_trained() -> None:
    row = {"messages": TWO, "loss_mask": [0, 1, 0, 0]}
    assert [each.responses[0].text for each in read("messages", row).examples] == ["draft"]
    assert reason("messages", {**row, "loss_mask": [0, 1]}).startswith("loss_mask: expected a list")


def test_a_weight_of_an_answer_and_one_of_its_row_weigh_the_example() -> None:
    talk = [*ASKED, message("assistant", "a", loss_weight=0.5)]
    assert read("messages", {"messages": talk, "weight": 3}).examples[0].weight == 1.5


@pytest.mark.parametrize(
    ("format", "row", "why"),
    [
        ("messages", {"messages": [*ASKED, message("assistant", "a", mask=1)]},
         "messages: mask may keep an answer or leave it out; say train: true or false of the whole "
         "message"),
        ("messages", {"conversation": [{"input": "Hi", "output": "a", "loss": False}]},
         "conversation: every answer has the weight 0; nothing to train"),
        ("messages", {"conversation": [{"input": "Hi", "output": "a", "mask": 1}]},
         "conversation: mask may keep an answer or leave it out; say train: true or false of the "
         "whole message"),
        ("messages", {"conversation": [{"input": "Hi", "output": "a", "system": "Be kind."}]},
         "conversation: system inside an exchange; put it beside conversation, as system"),
        ("messages", {"messages": [*ASKED, message("assistant", "a", loss=-1)]},
         "messages: loss must not be negative, got -1"),
        ("pairs", {"chosen": [*ASKED, message("assistant", "a", loss=False)], "rejected": OTHER},
         "chosen: the last answer has the weight 0; nothing to train"),
        ("messages", {"messages": TALK, "rejected_response": "b", "rejected_messages": OTHER},
         "rejected_response and rejected_messages both hold a worse answer; keep one of them"),
        ("messages", {"messages": TALK, "rejected_response": "a"}, "two responses are equal"),
        ("completion", {"prompt": "Hi", "response": "a", "rejected_response": "b", "label": True},
         "a label beside rejected_response; a pair has none"),
        ("completion", {"prompt": "Hi", "response": "a", "label": True, "is_safe": False},
         "label and is_safe both hold a label; keep one of them"),
        ("alpaca", {"instruction": "Hi", "output": "a", "images": ["a.png"]},
         "images: only text can be trained on"),
        ("pairs", {"prompt": "Hi", "chosen": "a", "rejected": "b", "margin": "wide"},
         "margin: expected a finite number, got 'wide'"),
    ],
)  # fmt: skip
def test_what_cannot_be_followed_is_refused(format: str, row: Any, why: str) -> None:
    assert reason(format, row) == why


def test_lists_as_json_text_are_read_and_told_and_a_broken_one_is_refused() -> None:
    row = {"messages": json.dumps(TALK), "label": "true"}
    result = read("messages", row)
    assert result.examples == read("messages", {"messages": TALK, "label": True}).examples
    assert result.notices == {"messages: JSON text is read as a list": 1}
    broken = {"prompt": "Hi", "chosen": json.dumps(TALK)[:-1], "rejected": "b"}
    assert reason("pairs", broken).startswith("chosen: a list of messages that was printed as text")
    (plain,) = read("completion", {"prompt": "Hi", "completion": '[{"a": 1}]'}).examples
    assert plain.responses[0].text == '[{"a": 1}]'
