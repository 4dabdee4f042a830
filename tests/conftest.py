"""What several test files share: the folder of real data, and quiet numerics."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import ray
import torch

from metaalign.examples import Example, Response, Source, Turn
from metaalign.store.encoder import SegmentEncoder
from metaalign.store.token_store import TokenStore
from metaalign.store.tokenizer import train_tokenizer
from metaalign.store.writer import StoreWriter
from tests.worker_pool import close_pools

# The environment's own ninja and compiled operators, also where pytest runs without make: another
# ninja, or another environment's flags, would compile DeepSpeed's operators again for minutes.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))

pytest_plugins = ("tests.object_storage",)

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def _one_thread_each() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _shared_processes() -> Iterator[None]:
    """Processes that several modules share end with the last test."""
    yield
    close_pools()
    ray.shutdown()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public data sets beside the checkout."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the folder shared/data does not lie beside the checkout")
    return SHARED_DATA


@pytest.fixture(scope="module")
def ray_cluster() -> None:
    """A local Ray of two CPUs, whose workers find the package. It runs on for the next module."""
    root = str(Path(__file__).resolve().parents[1])
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        logging_level="warning",
        ignore_reinit_error=True,
        runtime_env={"env_vars": {"PYTHONPATH": root}},
    )


@pytest.fixture
def no_ray() -> None:
    """No Ray runs: the test starts its own, or sees that none is started."""
    ray.shutdown()


def tiny_examples(count: int = 48) -> list[Example]:
    """Pairs, rankings of three and single responses over shared meta-prompts; a quarter held out.

    Example i: i % 3 == 0 is a pair, 1 a ranking of three (the middle response is best), 2 a single
    response that nobody judged. System Info repeats every 4 examples, User Info every 6, and every
    fourth example carries an earlier exchange. Two neighbours share a conversation.
    """
    words = ("Lima", "Paris", "Rome", "Oslo", "Cairo", "Quito", "Accra")
    orders = ((1.0, 0.0), (1.0, 2.0, 0.0), (None,))
    examples = []
    for i in range(count):
        word, judged = words[i % len(words)], orders[i % 3]
        earlier = (Turn("user", "Hello!"), Turn("assistant", "Good day."))
        answers = (f"{word}.", f"{word.upper()}!", f"I would say {word} {i}.")
        scores = [{} if score is None else {"preference": score} for score in judged]
        examples.append(
            Example(
                system_info=("", "Answer in capitals.", "Be brief.", "Be kind.")[i % 4],
                user_info=f"I am user {i % 6}." if i % 5 else "",
                turns=(*(earlier if i % 4 == 0 else ()), Turn("user", f"Which city, {i // 2}?")),
                responses=tuple(map(Response, answers, scores)),
                source=Source("tiny.jsonl", i),
                tags={"recipe": "tiny", "split": "held_out" if i % 4 == 3 else "train"},
                conversation=f"tiny-{i // 2}",
            )
        )
    return examples


@pytest.fixture(scope="session")
def make_store() -> Callable[..., TokenStore]:
    """Writes a small real store with a byte-level BPE trained on its own text.

    `make_store(folder, examples=None, vocabulary_size=320)`; `examples` are `tiny_examples()`
    where none are given.
    """

    def make(
        folder: Path, examples: Sequence[Example] | None = None, *, vocabulary_size: int = 320
    ) -> TokenStore:
        examples = tiny_examples() if examples is None else examples
        texts = {response.text for example in examples for response in example.responses}
        texts |= {turn.text for example in examples for turn in example.turns}
        texts |= {text for each in examples for text in (each.system_info, each.user_info)}
        template = train_tokenizer(texts, vocabulary_size)
        with StoreWriter(folder) as writer:
            writer.add(SegmentEncoder(template).encode(examples))
            return writer.finish(template, fingerprint="tiny")

    return make
