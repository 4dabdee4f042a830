"""Several judged answers: which score orders them, what leaves their order open."""

import json
from pathlib import Path
from typing import Any

import pytest

from metaalign.data.formats import read_rows
from metaalign.data.sources.options import SourceOptions
from metaalign.data.sources.records import read_records
from tests.rows import ASKED, TALK, message, read, reason

GOLDEN = Path(__file__).parent / "golden" / "formats"


def ranked(*labels: int) -> dict[str, Any]:
    answers = {f"prediction {n}": f"answer {n}" for n in range(1, 5)}
    return {"question": "Q", "preference": list(labels), "feedback": {}, **answers}


def test_labels_of_pairs_become_the_ranking_that_reproduces_them() -> None:
    # 1 beats all, 2 ties with 3, both beat 4.
    (example,) = read("fine_grained", ranked(1, 1, 1, 0, 1, 1)).examples
    assert example.order_scores() == [3.0, 1.0, 1.0, 0.0]
    # 4 beats all, 1 beats 2, 3; 3 beats 2.
    (example,) = read("fine_grained", ranked(1, 1, 2, 2, 2, 2)).examples
    assert example.order_scores() == [2.0, 0.0, 1.0, 3.0]


@pytest.mark.parametrize("labels", [(1, 2, 1, 1, 1, 1), (0, 1, 0, 0, 0, 0), (0, 0, 1, 0, 1, 0)])
def test_labels_that_no_ranking_reproduces_are_intransitive(labels: tuple[int, ...]) -> None:
    # 1 > 2 > 3 > 1; 1 = 2 = 3 and yet 1 > 3; 3 = 1 > 4 = 3.
    assert reason("fine_grained", ranked(*labels)).startswith("intransitive")


def test_an_error_whose_type_no_objective_is_known_for_is_refused() -> None:
    feedback = {"errors": [{"error type": "Rude"}], "corrected-prediction": "better"}
    row = {**ranked(0, 0, 0, 0, 0, 0), "feedback": feedback}
    assert reason("fine_grained", row) == (
        "feedback: no objective is known for errors of type 'Rude'"
    )


def test_a_source_says_which_rating_orders_and_which_turns_are_trained() -> None:
    rows = json.loads((GOLDEN / "rated.json").read_text(encoding="utf-8"))
    (example,) = read("rated", rows[0]["row"], order_by="honesty").examples
    assert example.order_scores() == [None, 4.0]
    assert reason("rated", rows[0]["row"], order_by="wit").startswith("order_by 'wit' is not among")
    silent = {"prompt": "Hi", "completions": [{"text": "a"}, {"text": "b"}]}
    assert reason("rated", silent, order_by="wit").endswith("without scores or ranks have no order")
    talk = [message(role, f"{role} {n}") for n in range(3) for role in ("user", "assistant")]
    every = read("messages", {"messages": talk}).examples
    assert [len(example.turns) for example in every] == [1, 3, 5]
    assert len({example.conversation for example in every}) == 1
    last = read("messages", {"messages": talk}, assistant_turns="last").examples
    assert last == every[-1:]


def test_one_overall_score_is_read_of_all_answers() -> None:
    def scores(*answers: dict[str, Any]) -> list[float | None]:
        texts = [{"text": str(number), **answer} for number, answer in enumerate(answers)]
        (example,) = read("rated", {"prompt": "Hi", "completions": texts}).examples
        return example.order_scores()

    both = {"fine-grained_score": 2, "score": 9}
    assert scores(both, both, {}) == [2.0, 2.0, None]
    # The first has no fine-grained score, and an overall one cannot be compared with that.
    assert scores({"score": 7}, both) == [7.0, 9.0]
    assert scores({"fine-grained_score": "N/A", "score": 7}, both) == [7.0, 9.0]
    # No score is on all: the first kind counts, and who lacks it has none.
    assert scores({"score": 7}, {"overall_score": "3.5"}) == [None, 3.5]


PAIR = {"prompt": "Hi", "chosen": "a", "rejected": "b", "score_chosen": "1", "score_rejected": 2}


HELPSTEER = {"prompt": "Hi", "response": "a", "helpfulness": 4, "correctness": 3, "coherence": 4,
             "complexity": 1, "verbosity": "2"}  # fmt: skip


OWN = {"turns": [{"role": "user", "text": "Hi"}],
       "responses": [{"text": "a", "scores": {"help": 1}}, {"text": "b", "scores": {"help": 0}}],
       "tags": {"note": None}}  # fmt: skip


@pytest.mark.parametrize(
    ("format", "row", "order_by", "scores", "others"),
    [
        ("pairs", PAIR, "rating", [[1.0, 2.0]], "['preference', 'rating']"),
        ("sharegpt", {**PAIR, "conversations": ASKED, "prompt": None}, "rating", [[1.0, 2.0]],
         "['preference', 'rating']"),
        ("completion", HELPSTEER, "verbosity", [[2.0]],
         "['helpfulness', 'correctness', 'coherence', 'complexity', 'verbosity']"),
        ("metaalign", OWN, "help", [[1.0, 0.0]], "['help']"),
        ("metaaligner", {"query": "Hi", "goldens": "a", "generated_text": "b"}, "preference",
         [[1.0, 0.0]], "['preference']"),
        # Nobody judged the four answers by completeness, only the correction of the first.
        ("fine_grained", {"question": "Q", "preference": [1, 1, 1, 0, 1, 1],
                          **{f"prediction {number}": str(number) for number in range(1, 5)},
                          "feedback": {"missing-info": [{"error type": "Missing-Answer"}],
                                       "corrected-prediction": "5"}}, "completeness", [[1.0, 0.0]],
         "['preference', 'relevance', 'factuality', 'completeness']"),
    ],
)  # fmt: skip
def test_a_source_orders_every_judged_shape(
    format: str, row: Any, order_by: str, scores: list[list[float]], others: str
) -> None:
    examples = read(format, row, order_by=order_by).examples
    assert [example.order_scores() for example in examples] == scores
    why = f"order_by 'wit' is not among its objectives {others}"
    assert reason(format, row, order_by="wit") == why


def test_what_nobody_judged_is_not_ordered() -> None:
    result = read("messages", {"messages": TALK}, order_by="wit")
    assert (result.bad, len(result.examples)) == ([], 1)


def test_truthfulqa_gives_the_best_answer_first_and_true_ones_over_false(shared_data: Path) -> None:
    file = shared_data / "truthfulqa" / "TruthfulQA.csv"
    result = read_rows(read_records(file), str(file), "truthfulqa", SourceOptions())
    assert (result.rows, result.used, len(result.bad)) == (817, 815, 2)
    for example in result.examples:
        scores = example.order_scores()
        assert scores == sorted(scores, reverse=True)  # pyright: ignore[reportArgumentType]
        assert set(scores) == {1.0, 0.0}
