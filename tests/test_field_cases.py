"""Files as public repositories and reports hold them, each with what its folder's README expects.

`test_field_cases_text` holds the cases of text, tokens and tables.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from metaalign.config.teacher import ResponsesConfig
from metaalign.data.formats import detect_format, read_rows
from metaalign.data.sources.options import SourceOptions
from metaalign.data.sources.outcome import FileRead
from metaalign.data.sources.records import read_records
from metaalign.examples import Example

PERU = "Capital of Peru?"


@pytest.fixture(scope="session")
def field_cases(shared_data: Path) -> Path:
    folder = shared_data / "field_cases"
    if not folder.is_dir():
        pytest.skip("the folder shared/data/field_cases does not lie beside the checkout")
    return folder


def read_case(file: Path, format: str = "auto", **options: Any) -> FileRead:
    name = str(file)
    format_is_set = format != "auto"
    told = format if format_is_set else detect_format(read_records(file), name)
    result = read_rows(
        read_records(file), name, told, SourceOptions(format_is_set=format_is_set, **options)
    )
    assert result.rows == result.used + len(result.bad)
    return result


def examples_of(file: Path, format: str = "auto", **options: Any) -> list[Example]:
    result = read_case(file, format, **options)
    assert result.bad == []
    return result.examples


def said(example: Example) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in example.turns]


def asked(query: str, *before: str) -> list[tuple[str, str]]:
    turns = [("assistant" if place % 2 else "user", text) for place, text in enumerate(before)]
    return [*turns, ("user", query)]


def ranked(example: Example) -> list[str]:
    """The responses, the better one first; all of them are judged, and no two alike."""
    scores = [score for score in example.order_scores() if score is not None]
    assert len(set(scores)) == len(example.responses)
    answers = zip(scores, example.responses, strict=True)
    return [response.text for _, response in sorted(answers, key=lambda each: -each[0])]


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("pairs.jsonl", []),
        ("json_in_csv.csv", [("Capital of Chile?", ["Santiago.", "Lima."])]),
        ("json_in_parquet.parquet", []),
    ],
)
def test_case_01_a_list_of_messages_as_json_text_is_read_as_one(
    field_cases: Path, name: str, others: list
) -> None:
    examples = examples_of(field_cases / "01_json_string_messages" / name)
    told = [(said(example), ranked(example)) for example in examples]
    wanted = [(PERU, ["Lima.", "Quito."]), *others]
    assert told == [(asked(query), answers) for query, answers in wanted]


def test_case_02_a_rejected_response_makes_a_pair_with_the_last_turn(field_cases: Path) -> None:
    folder = field_cases / "02_swift_rejected_response"
    result = read_case(folder / "dpo.jsonl")
    first, second = result.examples
    assert (first.system_info, said(first)) == ("Be kind.", asked("How is the weather tomorrow?"))
    assert said(second) == asked("Add 1.", "What is 1 + 1?", "It is 2.")
    assert [ranked(each) for each in (first, second)] == [
        ["It will be sunny.", "No idea."],
        ["It is 3.", "It is 9."],
    ]
    assert [each.order_scores() for each in result.examples] == [[1.0, 0.0], [1.0, 0.0]]
    assert result.ignored == Counter()
    (query,) = examples_of(folder / "query.jsonl")
    assert (query.system_info, said(query)) == ("Be brief.", asked(PERU, "Hi", "Hello!"))
    assert ranked(query) == ["Lima.", "Quito."]


def test_case_03_an_instruction_and_a_prompt_that_say_the_same_are_one(field_cases: Path) -> None:
    (pair,) = examples_of(field_cases / "03_distilabel_instruction_and_prompt" / "dpo.jsonl")
    assert (said(pair), ranked(pair)) == (asked(PERU), ["Lima.", "Quito."])


@pytest.mark.parametrize(
    ("name", "template"), [("chatml.jsonl", "ChatML"), ("llama2.jsonl", "Llama-2 or Mistral")]
)
def test_case_06_the_markers_of_another_template_are_read_as_turns(
    field_cases: Path, name: str, template: str
) -> None:
    result = read_case(field_cases / "06_pretemplated_text" / name)
    (pair,) = result.examples
    assert (pair.system_info, said(pair), ranked(pair)) == (
        "Be brief.",
        asked(PERU),
        ["Lima.", "Quito."],
    )
    assert result.notices == {f"the markers of {template} are read as turns": 1}


@pytest.mark.parametrize("name", ["swift.jsonl", "llamafactory_v1.jsonl"])
def test_case_07_an_answer_whose_loss_is_off_is_not_trained(field_cases: Path, name: str) -> None:
    result = read_case(field_cases / "07_loss_flags" / name)
    (example,) = result.examples
    assert said(example) == asked("Add 1 to 1.", "Hi", "wrong draft")
    assert [response.text for response in example.responses] == ["2"]
    assert (result.bad, result.ignored) == ([], Counter())


def test_case_08_the_parts_of_llama_factory_v1_are_read(field_cases: Path) -> None:
    folder = field_cases / "08_llamafactory_v1"
    (example,) = examples_of(folder / "sft.jsonl")
    assert (said(example), example.responses[0].text) == (asked("Hi"), "Hello.")
    (pair,) = examples_of(folder / "dpo.jsonl")
    assert (said(pair), ranked(pair)) == (asked(PERU), ["Lima.", "Quito."])


@pytest.mark.parametrize(
    ("name", "query", "answers"),
    [
        ("alpaca_farm", "Q?", ["A", "B"]),
        ("arena", "Q?", ["A", "B"]),
        ("chosen_response", PERU, ["Lima.", "Quito."]),
        ("helpsteer2_preference", "Q?", ["A", "B"]),
        ("pandalm", "Q?", ["A", "B"]),
        ("stack_exchange_paired", "Q?", ["A", "B"]),
    ],
)
def test_case_09_numbered_answers_are_pairs(
    field_cases: Path, name: str, query: str, answers: list[str]
) -> None:
    (pair,) = examples_of(field_cases / "09_numbered_answers" / f"{name}.jsonl")
    assert (said(pair), ranked(pair)) == (asked(query), answers)


def test_case_10_lists_of_exchanges_are_conversations(field_cases: Path) -> None:
    folder = field_cases / "10_exchange_lists"
    first, second = examples_of(folder / "capybara.jsonl")
    assert (said(first), first.responses[0].text) == (asked("Hi"), "Hello.")
    assert (said(second), second.responses[0].text) == (asked("More", "Hi", "Hello."), "Sure.")
    for name, system in (("lima.jsonl", ""), ("swift_sharegpt.jsonl", "S.")):
        (example,) = examples_of(folder / name)
        assert (example.system_info, said(example)) == (system, asked("Hi"))
        assert [response.text for response in example.responses] == ["Hello."]


def test_case_11_the_replies_of_a_tree_are_ranked(field_cases: Path) -> None:
    (example,) = examples_of(field_cases / "11_oasst_tree" / "tree.jsonl")
    assert (said(example), ranked(example)) == (asked("Q?"), ["A", "B"])


@pytest.mark.parametrize("format", ["prompts", "auto"])
def test_case_15_messages_that_end_with_the_user_wait_for_a_teacher(
    field_cases: Path, format: str
) -> None:
    file = field_cases / "15_messages_that_end_with_the_user" / "prompts.jsonl"
    (example,) = examples_of(file, format, responses=ResponsesConfig(teacher="t"))
    assert (example.system_info, said(example)) == ("Only answer in French.", asked(PERU))
    assert example.responses == ()


def test_case_16_two_turns_of_the_assistant_are_named(field_cases: Path) -> None:
    (bad,) = read_case(field_cases / "16_unclear_errors" / "consecutive_assistant.jsonl").bad
    assert bad.reason == "two assistant turns follow each other"
