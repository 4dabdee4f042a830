"""MetaAligner's plain prompts: a query, an answer, and the objectives to edit it for.

The third rendering, besides the tiers and a model's own chat template. The three forms are exactly
those that MetaAligner's public checkpoints were trained on (https://arxiv.org/abs/2403.17141):

    You are an assistant to human. You will be provided with a context and an answer. Consider the
    context, then edit the answer to improve it considering these aspects: Honesty: The response
    should not tell lies | Context: Capital of Peru? | Answer: Cusco. | Edit:

The descriptions of objectives have the meaning of the paper's, but not always its words.
"""

from collections.abc import Sequence
from typing import Literal

from metaalign.config.prepare import Wire
from metaalign.examples import Turn

Direction = Literal["better", "equal"]

OBJECTIVES = {
    "Harmlessness": (
        "The response should avoid content that is offensive, discriminatory, or harmful"
    ),
    "Helpfulness": "The response should provide useful resources and suggestions to the user",
    "Humor": "The response should be cheerful and amusing",
    "Instruction following": "The response should carefully follow the instructions of the query",
    "Honesty": "The response should not tell lies",
    "Truthfulness": "The response should actively make known all the full truth of a matter",
    "Correctness": "The explanations should make correct predictions",
    "Informativeness": "The explanations should have clear logic and provide consistent evidence",
    "Professionalism": "The explanations should provide evidence with high quality and reliability",
    "Specificity": "The response should refer to facts and details and avoid vague arguments",
    "Factuality": "The response should be factual and based on relevant evidence",
    "Readability": "The response should be easy to read and well structured",
    "Fairness": "The response should avoid biased or one-sided arguments",
    "Repetition": "The response should avoid repetition of statements",
    "Length": "The response should be concise and avoid redundant content",
    "Relevance": "The response should contain only what the query asks for",
    "Completeness": "The response should leave out nothing that the query asks for",
}
"""Objective -> its description. MetaAligner was not trained on Specificity and those after it."""

_OPENING = (
    "You are an assistant to human. You will be provided with {a} and an answer. Consider the "
    "{thing}, then edit the answer to {edit} considering these aspects: {objectives} | "
    "{Thing}: {query} | Answer: {answer} | Edit: "
)
_EDITS = {"better": "improve it", "equal": "make it equal"}
_SPEAKERS = {"user": "Human", "assistant": "Assistant"}


def description(objective: str) -> str | None:
    """An objective as it appears in prompts, `Name: description`; None if it is unknown.

    Args:
        objective: Its name; case does not matter, and `_` may stand for a space.
    """
    wanted = objective.replace("_", " ").casefold()
    return next(
        (f"{name}: {text}" for name, text in OBJECTIVES.items() if name.casefold() == wanted), None
    )


def query_text(turns: Sequence[Turn]) -> str:
    """The text of a single turn unchanged; several turns with a speaker label before each."""
    if len(turns) == 1:
        return turns[0].text
    return "\n\n".join(f"{_SPEAKERS[turn.role]}: {turn.text}" for turn in turns)


def edit_prompt(
    wire: Wire, *, query: str, answer: str, objectives: Sequence[str], direction: Direction
) -> str:
    """The prompt whose completion is the edited answer.

    Args:
        objectives: Descriptions, in the order of the prompt.

    Raises:
        ValueError: `objectives` is empty.
    """
    if not objectives:
        raise ValueError("an edit needs at least one objective")
    joined = "; ".join(objectives)
    if wire == "imhi":
        return (
            f"Edit the following Question-Answer pair to make it {direction} considering the "
            f"following objectives {joined} | Question: {query} | Answer: {answer} | Edit:"
        )
    thing = "context" if wire == "hh_rlhf" else "query"
    return _OPENING.format(
        a=f"a {thing}",
        thing=thing,
        Thing=thing.capitalize(),
        edit=_EDITS[direction],
        objectives=joined,
        query=query,
        answer=answer,
    )
