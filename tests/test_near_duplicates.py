"""What all but repeats a held-out prompt leaves training; nothing else does."""

from pathlib import Path

import pytest

from metaalign.data.work.near_duplicates import HeldOutSignatures, NearHeldOut
from metaalign.examples import Example, Response, Source, Turn

ASKED = (
    "How long does it take to get from Lima to Cusco by bus in the rainy season, and is it safe?"
)


def example(query: str, *, split: str = "train", answers: tuple[str, ...] = ("a",)) -> Example:
    tags = {"split": split} if len(answers) == 1 else {"split": split, "persona": "shy"}
    return Example(
        turns=(Turn("user", query),),
        responses=tuple(map(Response, answers)),
        source=Source("rows", 0),
        tags=tags,
    )


def near(folder: Path, *examples: Example, threshold: float = 0.7) -> NearHeldOut:
    """Two parts, of which the second has no held-out example."""
    files = [folder / "0.npy", folder / "1.npy"]
    for file, held in zip(files, (examples, ()), strict=True):
        signatures = HeldOutSignatures()
        assert all(signatures.take(each) for each in (*held, example("not held out")))
        signatures.write(file)
    return NearHeldOut(files, threshold)


@pytest.mark.parametrize(
    ("query", "kept"),
    [
        (ASKED, False),
        (ASKED.upper().replace(",", " -"), False),
        (f"Please: {ASKED}", False),
        (ASKED.replace("Cusco", "Puno").replace("bus", "train").replace("rainy", "dry"), True),
        ("not held out", True),
        ("How long does it take?", True),
        ("?!", True),
    ],
)
def test_a_training_prompt_that_all_but_repeats_a_held_out_one_is_told(
    tmp_path: Path, query: str, kept: bool
) -> None:
    teller = near(tmp_path, example(ASKED, split="held_out"), threshold=0.7)
    assert teller.keeps(example(query)) == kept
    assert teller.keeps(example(query, split="held_out"))


def test_a_lower_threshold_tells_more(tmp_path: Path) -> None:
    held = example(ASKED, split="held_out")
    changed = example(ASKED.replace("Cusco", "Puno"))
    # 22 triples each with those of the edges; the changed word stands in three of them
    assert near(tmp_path, held, threshold=0.9).keeps(changed)
    assert not near(tmp_path, held, threshold=0.6).keeps(changed)


def test_statements_of_a_persona_are_compared_and_not_what_all_are_asked(tmp_path: Path) -> None:
    asked, held = "What would you say?", ("I like to stay at home", "I like to dance all night")
    teller = near(tmp_path, example(asked, split="held_out", answers=held))
    assert not teller.keeps(example(asked, answers=held[::-1]))
    assert teller.keeps(example(asked, answers=("I never speak first", "I speak to everybody")))


def test_without_a_held_out_example_all_are_kept(tmp_path: Path) -> None:
    assert near(tmp_path).keeps(example(ASKED))
