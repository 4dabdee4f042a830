"""MetaAligner's three prompts, to the letter."""

import pytest

from metaalign.config.prepare import Wire
from metaalign.examples import Turn
from metaalign.wire import OBJECTIVES, Direction, description, edit_prompt, query_text

HONESTY = "Honesty: The response should not tell lies"


@pytest.mark.parametrize(
    ("wire", "direction", "prompt"),
    [
        (
            "hh_rlhf",
            "better",
            "You are an assistant to human. You will be provided with a context and an answer. "
            "Consider the context, then edit the answer to improve it considering these aspects: "
            f"{HONESTY}; b | Context: Capital {{of}} Peru? | Answer: Cusco. | Edit: ",
        ),
        (
            "ultrafeedback",
            "equal",
            "You are an assistant to human. You will be provided with a query and an answer. "
            "Consider the query, then edit the answer to make it equal considering these aspects: "
            f"{HONESTY}; b | Query: Capital {{of}} Peru? | Answer: Cusco. | Edit: ",
        ),
        (
            "imhi",
            "better",
            "Edit the following Question-Answer pair to make it better considering the following "
            f"objectives {HONESTY}; b | Question: Capital {{of}} Peru? | Answer: Cusco. | Edit:",
        ),
        (
            "imhi",
            "equal",
            "Edit the following Question-Answer pair to make it equal considering the following "
            f"objectives {HONESTY}; b | Question: Capital {{of}} Peru? | Answer: Cusco. | Edit:",
        ),
    ],
)
def test_a_prompt_is_the_published_one(wire: Wire, direction: Direction, prompt: str) -> None:
    told = edit_prompt(
        wire,
        query="Capital {of} Peru?",
        answer="Cusco.",
        objectives=[HONESTY, "b"],
        direction=direction,
    )
    assert told == prompt


def test_an_edit_without_an_objective_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one objective"):
        edit_prompt("imhi", query="q", answer="a", objectives=[], direction="better")


def test_objectives_are_known_in_any_spelling() -> None:
    assert description("honesty") == description("HONESTY") == HONESTY
    assert description("instruction_following") == (
        "Instruction following: The response should carefully follow the instructions of the query"
    )
    assert description("taste") is None
    assert len(set(OBJECTIVES.values())) == len(OBJECTIVES)


def test_a_dialogue_names_its_speakers_and_a_lone_query_stands_alone() -> None:
    turns = [Turn("user", "Hi"), Turn("assistant", "Hello"), Turn("user", "Bye")]
    assert query_text(turns) == "Human: Hi\n\nAssistant: Hello\n\nHuman: Bye"
    assert query_text(turns[:1]) == "Hi"
