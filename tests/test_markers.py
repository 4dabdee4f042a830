"""Texts of other chat templates: split where they follow one, told where they do not, else left."""

from typing import Any

import pytest

from metaalign.data.formats.markers import marked_by, split_template, without_end
from tests.rows import message, read, reason

CHATML = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\n"
LLAMA_3 = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nQ?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
LLAMA_4 = LLAMA_3.replace("_header_id|", "_|").replace("start_|", "header_start|")
LLAMA_4 = LLAMA_4.replace("end_|", "header_end|").replace("<|eot_id|>", "<|eot|>")


@pytest.mark.parametrize(
    ("prompt", "end", "system"),
    [
        (CHATML, "<|im_end|>\n", "S"),
        (CHATML.rstrip(), "<|im_end|><|endoftext|>", "S"),
        (LLAMA_3, "<|eot_id|>", "S"),
        (LLAMA_4, "<|eot|>", "S"),
        ("<bos><start_of_turn>user\nQ?<end_of_turn>\n<start_of_turn>model\n", "<end_of_turn>", ""),
        ("<|system|>\nS</s>\n<|user|>\nQ?</s>\n<|assistant|>\n", "</s>", "S"),
        ("<|system|>\nS<|end|>\n<|user|>\nQ?<|end|>\n<|assistant|>\n", "<|end|>", "S"),
        ("<|system|>\nS\n<|user|>\nQ?\n<|assistant|>\n", "", "S"),
        ("<|system|>S<|end|><|user|>Q?<|end|><|assistant|>", "<|end|>", "S"),
        ("<|user|>\nQ?<|end|>\n<|assistant|> ", "<|end|>", ""),
        ("<|user|> \nQ?</s>\n<|assistant|> ", "</s>", ""),
        ("<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nQ? [/INST]", " </s>", "S"),
        ("[INST] Q? [/INST]", "</s>", ""),
        ("### Human: Q?\n### Assistant:", "", ""),
        ("Human: Q?\nAssistant:", "", ""),
        ("Human: Q?\n\nAssistant:", "", ""),
    ],
)
def test_a_prompt_of_another_template_is_a_query_under_its_system_text(
    prompt: str, end: str, system: str
) -> None:
    row = {"prompt": prompt, "chosen": f"A{end}", "rejected": f"B{end}"}
    (example,) = read("pairs", row).examples
    assert (example.system_info, [turn.text for turn in example.turns]) == (system, ["Q?"])
    assert [response.text for response in example.responses] == ["A", "B"]
    assert example.order_scores() == [1.0, 0.0]


@pytest.mark.parametrize(
    "whole",
    [
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n"
        "<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>\n",
        "<s>[INST] Hi [/INST] Ho </s><s>[INST] Q? [/INST] {} </s>",
        "<|user|>\nHi</s>\n<|assistant|>\nHo</s>\n<|user|>\nQ?</s>\n<|assistant|>\n{}</s>",
        "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHo<end_of_turn>\n"
        "<start_of_turn>user\nQ?<end_of_turn>\n<start_of_turn>model\n{}<end_of_turn><eos>",
    ],
)
def test_whole_conversations_of_another_template_are_pairs(whole: str) -> None:
    row = {"chosen": whole.format("A"), "rejected": whole.format("B")}
    for prompt in ({}, {"prompt": "Q?"}):
        (example,) = read("pairs", {**row, **prompt}).examples
        assert [turn.text for turn in example.turns] == ["Hi", "Ho", "Q?"]
        assert [response.text for response in example.responses] == ["A", "B"]
    (text, more) = read("text", {"text": whole.format("A")}).examples
    assert [text.responses[0].text, more.responses[0].text] == ["Ho", "A"]


def test_an_answer_under_the_assistants_own_header_is_the_answer() -> None:
    answer = "<|assistant|>\nA</s>"
    row = {"prompt": "<|user|>\nQ?</s>\n", "chosen": answer, "rejected": "<|assistant|>\nB</s>"}
    (pair,) = read("pairs", row).examples
    assert [response.text for response in pair.responses] == ["A", "B"]
    (single,) = read("completion", {"prompt": "Q?", "completion": answer}).examples
    assert single.responses[0].text == "A"


STAYS = "the markers of {} stay in the text, and are trained"


@pytest.mark.parametrize(
    ("prompt", "template"),
    [
        ("What does <|im_start|>user mean?", "ChatML"),
        ("<|im_start|>user\nHi\n<|im_start|>assistant\n", "ChatML"),
        ("<|im_start|>tool\nHi<|im_end|>\n<|im_start|>assistant\n", "ChatML"),
        ("<|im_start|>user\nHi<|im_end|> or so<|im_end|>\n<|im_start|>assistant\n", "ChatML"),
        ("[INST] Hi", "Llama-2 or Mistral"),
        ("[INST] a [/INST] b [/INST] c", "Llama-2 or Mistral"),
        ("Why do prompts hold [INST]?", "Llama-2 or Mistral"),
        ("<|user|> is a marker", "Zephyr or Phi"),
        ("<|user|>\na</s>\n<|assistant|>\nb\n<|user|>\nc", "Zephyr or Phi"),
        ("### Human: anatomy\nA chapter.", "Guanaco"),
        ("<|system|> and <|user|> are what?", "Zephyr or Phi"),
        ("<|user|> and <|assistant|> are what?", "Zephyr or Phi"),
        ("<|user|>Hi<|end|><|assistant|>Ho<|end|>", "Zephyr or Phi"),
        ("[INST] and [/INST] mark what?", "Llama-2 or Mistral"),
        ("[INST] [/INST]", "Llama-2 or Mistral"),
        ("### Human: and ### Assistant: mark what?", "Guanaco"),
        ("Below is an instruction.\n\n### Instruction:\nHi\n\n### Response:", "Alpaca"),
    ],
)
def test_text_that_mentions_markers_or_breaks_off_stays_text_and_is_told(
    prompt: str, template: str
) -> None:
    result = read("completion", {"prompt": prompt, "completion": "A"})
    assert [turn.text for example in result.examples for turn in example.turns] == [prompt]
    assert result.notices == {STAYS.format(template): 1}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Is 1 | 2 a table?", "completion": "### No\n\n| a | b |"},
        {"prompt": "User: Hi\nAssistant: Ho\nSum this up.", "completion": "A greeting."},
        {"prompt": "Human: Hi\nAssistant: Ho\nSum this up.", "completion": "A greeting."},
    ],
)
def test_plain_text_stays_as_it_is_and_nothing_is_told(row: dict[str, str]) -> None:
    result = read("completion", row)
    (example,) = result.examples
    assert [turn.text for turn in example.turns] == [row["prompt"]]
    assert example.responses[0].text == row["completion"]
    assert result.notices == {}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("Lima.<|im_end|>\n", "Lima."),
        (" Lima.<|eot_id|>", "Lima."),
        ("Lima.<end_of_turn>\n<eos>", "Lima."),
        ("Lima.<|im_end|></s>", "Lima."),
        (" Lima. ", " Lima. "),
        ("<b>Lima</b>", "<b>Lima</b>"),
        ("It is <s>Quito</s>", "It is <s>Quito</s>"),
        ("<|im_start|>user\nHi<|im_end|>", "<|im_start|>user\nHi<|im_end|>"),
        ("a<|im_end|>b", "a<|im_end|>b"),
    ],
)
def test_the_marker_that_closes_an_answer_is_no_part_of_it(answer: str, said: str) -> None:
    assert without_end(answer) == said


@pytest.mark.parametrize("prompt", ["Q?", [message("user", "Q?")]])
@pytest.mark.parametrize("answer", ["GPT-2 ends a text with <|endoftext|>", "</s>", "a <|im_end|>"])
def test_an_answer_to_a_plain_prompt_may_end_with_a_marker(prompt: Any, answer: str) -> None:
    (single,) = read("completion", {"prompt": prompt, "completion": answer}).examples
    assert single.responses[0].text == answer
    (pair,) = read("pairs", {"prompt": prompt, "chosen": answer, "rejected": "<eos>"}).examples
    assert [response.text for response in pair.responses] == [answer, "<eos>"]


def test_an_answer_that_shows_a_query_of_a_template_stays_text_and_is_told() -> None:
    shown = "<|im_start|>user\nHi<|im_end|>"
    for row in (
        {"prompt": "Show ChatML.", "completion": shown},
        {"prompt": CHATML, "completion": shown},
    ):
        result = read("completion", row)
        assert [example.responses[0].text for example in result.examples] == [shown]
        assert result.notices == {STAYS.format("ChatML"): 1}
    row = {"prompt": "Show ChatML.", "chosen": shown, "rejected": "No."}
    assert read("pairs", row).examples[0].responses[0].text == shown


def test_two_templates_in_a_row_of_a_file_are_both_told() -> None:
    rows = [
        {"prompt": CHATML, "completion": "A<|im_end|>"},
        {"prompt": "[INST] Q? [/INST]", "completion": "What is <start_of_turn>?"},
    ]
    assert read("completion", *rows).notices == {
        "the markers of ChatML are read as turns": 1,
        "the markers of Llama-2 or Mistral are read as turns": 1,
        STAYS.format("Gemma"): 1,
    }
    assert marked_by(["a", "<|im_end|>", "[INST]"]) == ["ChatML", "Llama-2 or Mistral"]


def test_a_tier_that_holds_markers_is_told() -> None:
    row: dict[str, Any] = {
        "turns": [{"role": "user", "text": "Hi", "user_info": "I am <|im_start|>"}],
        "responses": [{"text": "a"}],
    }
    assert read("metaalign", row).notices == {STAYS.format("ChatML"): 1}


def test_an_order_of_turns_that_nobody_can_train_is_refused() -> None:
    twice = "<|im_start|>user\na<|im_end|>\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n"
    assert reason("completion", {"prompt": twice, "completion": "c"}) == (
        "two user turns follow each other"
    )
    assert split_template("<|im_start|>assistant\n") is None
