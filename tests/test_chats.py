"""Conversations, pairs and answers: what is trained of them, what is refused and not dropped."""

import json
from typing import Any

import pytest

from metaalign.data.formats import detect_format
from metaalign.data.sources.records import Record
from tests.rows import ASKED, OTHER, TALK, message, read, reason

SYSTEM = message("system", "S")


PRINTED = (
    "a list of messages that was printed as text; export the rows as JSON lines or Parquet, which "
    "keep lists"
)


@pytest.mark.parametrize(
    ("format", "row", "why"),
    [
        ("alpaca", {"instruction": "a", "question": "b", "output": "c"},
         "instruction and question both hold a prompt; keep one of them"),
        ("completion", {"prompt": "a", "query": "b", "completion": "c"},
         "prompt and query both hold a prompt; keep one of them"),
        ("completion", {"question": "a", "response": "b", "answer": "c"},
         "response and answer both hold an answer; keep one of them"),
        ("rated", {"prompt": "a", "responses": ["b"], "answers": ["c"], "scores": [1]},
         "responses and answers both hold answers; keep one of them"),
        ("rated", {"prompt": "a", "responses": ["b"], "ranks": [1], "scores": [1]},
         "scores and ranks both hold scores; keep one of them"),
        ("rated", {"prompt": "a", "responses": [{"text": "b", "answer": "c", "score": 1}]},
         "text and answer both hold an answer; keep one of them"),
        ("completion", {"prompt": ASKED, "context": "b", "completion": "c"},
         "context beside a conversation in prompt; put it into that conversation"),
        ("completion", {"prompt": ASKED, "input": "b", "completion": "c"},
         "input beside a conversation in prompt; put it into that conversation"),
        ("completion", {"prompt": "\n\nHuman: a", "history": [["b", "c"]], "completion": "d"},
         "history beside a conversation in prompt; put it into that conversation"),
        ("pairs", {"chosen": TALK, "rejected": OTHER, "history": [["b", "c"]]},
         "history beside a conversation in chosen; put it into that conversation"),
        ("prompts", {"prompt": "a", "turns": ["b"]},
         "turns and prompt both hold a prompt; keep one of them"),
        ("prompts", {"turns": ["b"], "context": "c"},
         "context beside a conversation in turns; put it into that conversation"),
        ("completion", {"prompt": "Hi", "completion": [SYSTEM, message("assistant", "a")]},
         "completion: expected the assistant's message alone, got [{'role': 'system', 'content': "
         "'S'}, {'role': 'assistant'..."),
        ("messages", {"messages": [*ASKED, message("assistant", "a", tool_calls=[{"id": "1"}])]},
         "messages: only text can be trained on, got a message with tool_calls"),
        ("pairs", {"prompt": "Hi", "chosen": message("assistant", "a", function_call={"name": "f"}),
                   "rejected": "b"},
         "chosen: only text can be trained on, got a message with function_call"),
        ("messages", {"messages": [message("user", None)]}, "messages: content is missing"),
        ("messages", {"messages": [{"content": "Hi"}]}, "messages: role is missing"),
        ("sharegpt", {"conversations": [{"from": "human", "value": 5}]},
         "conversations: value: expected text, got 5"),
        ("messages", {"messages": [SYSTEM, *TALK], "system": "R"},
         "two system texts that differ: 'S' and 'R'"),
        ("pairs", {"prompt": [SYSTEM, *ASKED], "rejected": [message("system", "R"), *OTHER],
                   "chosen": [message("system", "R"), *TALK]},
         "two system texts that differ: 'S' and 'R'"),
        ("completion", {"prompt": "Hi", "completion": "a", "system": "S", "system_prompt": "R"},
         "two system texts that differ: 'S' and 'R'"),
        ("pairs", {"prompt": "a", "chosen": TALK + OTHER, "rejected": [*TALK, *TALK]},
         "the prompt is not among the messages before the last of chosen"),
        ("pairs", {"prompt": [*ASKED, *ASKED], "chosen": TALK, "rejected": OTHER},
         "the prompt is not among the messages before the last of chosen"),
        ("pairs", {"prompt": "Hi", "chosen": str(TALK), "rejected": "b"}, f"chosen: {PRINTED}"),
        ("hh_rlhf", {"chosen": str(TALK), "rejected": str(OTHER)}, f"chosen: {PRINTED}"),
        ("completion", {"prompt": "Hi", "completion": str(OTHER)}, f"completion: {PRINTED}"),
        ("completion", {"prompt": str(ASKED), "completion": "a"}, f"prompt: {PRINTED}"),
    ],
)  # fmt: skip
def test_what_would_be_dropped_or_read_as_something_else_is_refused_by_name(
    format: str, row: Any, why: str
) -> None:
    assert reason(format, row) == why


@pytest.mark.parametrize("worse", ["rejected_response", "rejected", "rejected_output"])
@pytest.mark.parametrize("better", ["response", "output", "completion", "answer"])
def test_a_worse_answer_beside_a_single_one_makes_a_pair(better: str, worse: str) -> None:
    row = {"instruction": "Hi", better: "a", worse: "b"}
    format = detect_format([Record(0, row)], "rows")
    result = read(format, row)
    (pair,) = result.examples
    assert [response.text for response in pair.responses] == ["a", "b"]
    assert pair.order_scores() == [1.0, 0.0]
    assert (result.ignored, result.notices) == ({}, {})
    assert reason(format, {**row, "label": True}) == f"a label beside {worse}; a pair has none"


def test_a_worse_answer_under_an_unknown_key_is_not_dropped() -> None:
    row = {"prompt": "Hi", "response": "a", "rejected_text": "b"}
    assert reason("completion", row) == (
        "rejected_text beside response may be a worse answer; rename it to rejected_response, or "
        "give the source columns: {chosen: response, rejected: rejected_text}"
    )
    both = {**row, "rejected_text": None, "rejected": "b", "rejected_output": "c"}
    assert reason("completion", both) == (
        "rejected and rejected_output both hold a worse answer; keep one of them"
    )
    named = {**row, "rejected_text": "", "rejected": "b", "rejected_model": "m"}
    assert read("completion", named).ignored == {"rejected_text": 1, "rejected_model": 1}


def test_equal_system_texts_and_empty_fields_beside_a_prompt_are_no_fault() -> None:
    row = {"prompt": [SYSTEM, *ASKED], "system": " S ", "context": " ", "history": [], "query": ""}
    answers = {"chosen": [SYSTEM, *TALK], "rejected": [SYSTEM, *OTHER]}
    result = read("pairs", {**row, **answers, "tool_calls": []})
    assert [example.system_info for example in result.examples] == ["S"]
    (plain,) = read("pairs", {"chosen": TALK, "rejected": OTHER, "system": "S"}).examples
    assert plain.system_info == "S"
    answers = {key: [SYSTEM, side[-1]] for key, side in (("chosen", TALK), ("rejected", OTHER))}
    (told,) = read("pairs", {"prompt": "Hi", **answers}).examples
    assert (told.system_info, len(told.turns)) == ("S", 1)


UNTRAINED = [*TALK, *ASKED, message("assistant", "b", weight=0)]


LAST_UNTRAINED = "messages: the last answer has the weight 0; nothing to train"


NO_ANSWER = "messages: the last message is not the assistant's; nothing to train"


@pytest.mark.parametrize(
    ("row", "turns", "every", "last"),
    [
        ({"messages": UNTRAINED}, [1], None, LAST_UNTRAINED),
        ({"messages": UNTRAINED, "label": True}, [], LAST_UNTRAINED, LAST_UNTRAINED),
        ({"messages": [*TALK, *ASKED, message("assistant", "b", train=False)]}, [1], None,
         LAST_UNTRAINED),
        ({"messages": [*TALK, *OTHER, *ASKED]}, [1, 3], None, None),
        ({"messages": [*TALK, *ASKED], "label": True}, [], NO_ANSWER, NO_ANSWER),
        ({"messages": [TALK[1], *TALK]}, [],
         *["messages: the first turn is the assistant's; it must be the user's"] * 2),
    ],
)  # fmt: skip
def test_which_answers_of_a_conversation_are_trained(
    row: Any, turns: list[int], every: str | None, last: str | None
) -> None:
    result = read("messages", row)
    assert [len(example.turns) for example in result.examples] == turns
    assert [bad.reason for bad in result.bad] == [every] * (every is not None)
    final = read("messages", row, assistant_turns="last")
    assert [bad.reason for bad in final.bad] == [last] * (last is not None)
    assert final.examples == (result.examples[-1:] if last is None else [])


def test_a_message_whose_weight_is_null_is_trained() -> None:
    talk = [message("user", "Hi", weight=None), message("assistant", "Hello!", weight=None)]
    assert len(read("messages", {"messages": talk}).examples) == 1


@pytest.mark.parametrize(
    ("label", "desirable"),
    [(1.0, True), ("1.0", True), ("true", True), (0.0, False), ("0.0", False), (None, None)],
)
def test_a_label_may_be_a_number(label: Any, desirable: bool | None) -> None:
    (example,) = read("completion", {"prompt": "Hi", "completion": "a", "label": label}).examples
    assert example.responses[0].desirable is desirable


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("Hi", TALK[1]),
        (ASKED[0], "a"),
        (ASKED[0], TALK[1]),
        (ASKED, [TALK[1]]),
        ({"from": "human", "value": "Hi"}, {"from": "gpt", "value": "a"}),
    ],
)
def test_a_prompt_or_an_answer_may_be_one_message_without_a_list(prompt: Any, answer: Any) -> None:
    result = read("completion", {"prompt": prompt, "response": answer})
    ((turns, responses),) = [(each.turns, each.responses) for each in result.examples]
    assert [(turn.role, turn.text) for turn in turns] == [("user", "Hi")]
    assert [each.text for each in responses] == ["a"]
    same = {"prompt": prompt, "question": "Hi", "response": answer}
    assert read("completion", same).examples == result.examples


def test_an_answer_in_a_message_is_the_assistants_and_trained() -> None:
    row = {"prompt": "Hi", "response": ASKED[0]}
    assert reason("completion", row) == "response: the last turn is not the assistant's"
    one, other = message("assistant", "a", weight=0), message("assistant", "a", train=False)
    for untrained in (one, [other]):
        assert reason("completion", {"prompt": "Hi", "response": untrained}) == (
            "response: the last answer has the weight 0; nothing to train"
        )


ASKS_FOR_JSON = {"prompt": "Make a JSON message."}


@pytest.mark.parametrize(
    ("format", "row", "texts"),
    [
        ("alpaca", {"instruction": "Sum", "output": "3",
                    "input": '{"from": "alice", "to": "bob", "value": 3}'},
         ['Sum\n\n{"from": "alice", "to": "bob", "value": 3}', "3"]),
        ("alpaca", {"instruction": "Who?", "input": json.dumps(TALK[1]), "output": "The bot."},
         [f"Who?\n\n{json.dumps(TALK[1])}", "The bot."]),
        ("completion", {"prompt": json.dumps(TALK[1]), "completion": "b"},
         [json.dumps(TALK[1]), "b"]),
        ("completion", {**ASKS_FOR_JSON, "completion": json.dumps(ASKED[0])},
         ["Make a JSON message.", json.dumps(ASKED[0])]),
        ("pairs", {**ASKS_FOR_JSON, "chosen": json.dumps(ASKED[0]), "rejected": "No."},
         ["Make a JSON message.", json.dumps(ASKED[0]), "No."]),
        ("completion", {**ASKS_FOR_JSON, "completion": '{"role": "admin", "content": "x"}'},
         ["Make a JSON message.", '{"role": "admin", "content": "x"}']),
        ("completion", {**ASKS_FOR_JSON, "completion": '{"role": "bot", "content": {"a": 1}}'},
         ["Make a JSON message.", '{"role": "bot", "content": {"a": 1}}']),
        ("completion",
         {**ASKS_FOR_JSON, "completion": '{"role": "bot", "content": "x", "to": "bob"}'},
         ["Make a JSON message.", '{"role": "bot", "content": "x", "to": "bob"}']),
        ("completion", {"prompt": "List them.", "completion": '[{"from": "alice", "value": "x"}]'},
         ["List them.", '[{"from": "alice", "value": "x"}]']),
        ("completion", {"instruction": "Sum", "context": "[1, 2, 3]", "response": "6"},
         ["Sum\n\n[1, 2, 3]", "6"]),
    ],
)  # fmt: skip
def test_json_that_is_no_message_of_the_conversation_stays_text(
    format: str, row: Any, texts: list[str]
) -> None:
    result = read(format, row)
    (example,) = result.examples
    said = [*example.turns, *example.responses]
    assert ([each.text for each in said], result.notices) == (texts, {})


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ([*TALK, message("tool", "b")], "completion: role: expected one of assistant, bot, "),
        ([{"from": "function_call", "value": "b"}], "completion: from: expected one of "),
        ([{"from": "human", "value": "Hi"}, {"from": "alice", "value": "b"}],
         "completion: from: expected one of "),
        (message("assistant", None, tool_calls=[{"id": "1"}]),
         "completion: only text can be trained on, got a message with tool_calls"),
    ],
)  # fmt: skip
def test_messages_as_json_text_that_cannot_be_trained_are_refused(answer: Any, why: str) -> None:
    row = {"prompt": "Hi", "completion": json.dumps(answer)}
    assert reason("completion", row).startswith(why)


def test_an_answer_as_the_json_text_of_a_message_is_read_and_told() -> None:
    nulls = message("assistant", "a", refusal=None, tool_calls=[])
    result = read("pairs", {"prompt": "Hi", "chosen": json.dumps(nulls), "rejected": "b"})
    assert [each.text for each in result.examples[0].responses] == ["a", "b"]
    assert result.notices == {"chosen: JSON text is read as a list": 1}
