"""MetaAlign data for benchmarks, written by rule: the package's recipes, and personas of the
paper's sizes. Knows no Ray: a store is written in this process, in seconds.
"""

from collections.abc import Sequence
from pathlib import Path
from random import Random

from metaalign.config.prepare import RecipesConfig
from metaalign.data.recipes.rule_written import BACKGROUNDS, IDENTITIES, write_examples
from metaalign.examples import PREFERENCE, Example, Response, Source, Turn
from metaalign.preferences import FAMILIES, QUESTIONS, Preference, write_answer
from metaalign.store.encoder import SegmentEncoder
from metaalign.store.token_store import TokenStore
from metaalign.store.tokenizer import train_tokenizer
from metaalign.store.writer import StoreWriter

META_PROMPT_WORDS = 130
"""Words of a written persona, about 150 tokens with the template's."""


def recipe_examples(count: int) -> list[Example]:
    """Training examples of the package's recipes; 2k and 2k + 1 are one conversation."""
    config = RecipesConfig(examples=count)
    return write_examples(config, seed=0, start=0, stop=count)


def persona_examples(count: int, *, queries: int = 6) -> list[Example]:
    """Personas of a long meta-prompt, each with several conversations of one to three turns.

    Every assistant turn is an example, so that a conversation of three turns is three, and the
    prompt of the later holds the prompt of the earlier.
    """
    rng = Random(0)
    examples: list[Example] = []
    while len(examples) < count:
        system_info, user_info = f"{rng.choice(IDENTITIES)} {_wishes(rng, 20)}", _wishes(rng, 110)
        for _ in range(queries):
            examples += _conversation(system_info, user_info, len(examples), rng)
    return examples[:count]


def _wishes(rng: Random, words: int) -> str:
    said: list[str] = []
    while len(" ".join(said).split()) < words:
        family = FAMILIES[rng.choice(list(FAMILIES))]
        wish = Preference(family.name, rng.choice(family.parameters))
        said += [wish.say("user_info", rng), rng.choice(BACKGROUNDS)]
    return " ".join(said)


def _conversation(system_info: str, user_info: str, number: int, rng: Random) -> list[Example]:
    turns: list[Turn] = []
    examples = []
    for turn in range(rng.randint(1, 3)):
        question = rng.choice(list(QUESTIONS.values()))
        turns.append(Turn("user", rng.choice(question.phrasings)))
        answer = write_answer(question, ())
        chosen = " ".join([answer, *rng.choices(BACKGROUNDS, k=rng.randint(2, 30))])
        rejected = " ".join([*rng.choices(BACKGROUNDS, k=rng.randint(2, 30)), answer])
        examples.append(
            Example(
                system_info=system_info,
                user_info=user_info,
                turns=tuple(turns),
                responses=(
                    Response(chosen, {PREFERENCE: 1.0}),
                    Response(rejected, {PREFERENCE: 0.0}),
                ),
                source=Source("personas", number + turn),
                conversation=f"personas/{number}",
            )
        )
        turns.append(Turn("assistant", chosen))
    return examples


def write_store(folder: Path, examples: Sequence[Example]) -> TokenStore:
    """A store of these examples, with a byte-level BPE trained on their own text."""
    texts = {response.text for example in examples for response in example.responses}
    texts |= {turn.text for example in examples for turn in example.turns}
    texts |= {text for each in examples for text in (each.system_info, each.user_info)}
    template = train_tokenizer(texts, 2560)
    encoder = SegmentEncoder(template)
    with StoreWriter(folder) as writer:
        for start in range(0, len(examples), 2000):
            writer.add(encoder.encode(examples[start : start + 2000]))
        return writer.finish(template, fingerprint=folder.name)
