"""Requests that share a batch, on a real engine."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

import pytest

from metaalign.errors import ModelError
from metaalign.generate.embedded import Answer, EmbeddedEngine, Sampling
from metaalign.serve.batches import Batches
from tests.tiny_model import save_tiny_model

PROMPTS = [[20, 21], [30] * 9, [40, 41, 42, 43], [50] * 5, [60, 61]]


class CountingEngine(EmbeddedEngine):
    """The real engine; it remembers how many prompts came together."""

    sizes: list[int]

    def generate(self, prompts, sampling, listener=None):
        self.sizes.append(len(prompts))
        return super().generate(prompts, sampling, listener)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), context=64)


@pytest.fixture
def engine(folder: Path) -> CountingEngine:
    engine = CountingEngine(folder, device="cpu")
    engine.sizes = []
    return engine


async def ask(batches: Batches, prompt: Sequence[int], most: int) -> tuple[list[int], Answer]:
    """(tokens as they arrived, the answer)."""
    tokens: list[int] = []
    async for arrival in batches.stream(prompt, Sampling(max_tokens=most)):
        if isinstance(arrival, Answer):
            return tokens, arrival
        tokens += arrival
    raise AssertionError("no answer came")


def test_requests_of_one_moment_share_a_batch_and_keep_their_answers(
    engine: CountingEngine,
) -> None:
    limits = [3, 12, 5, 12, 7]

    async def scenario() -> list[tuple[list[int], Answer]]:
        batches = Batches(engine, max_size=4, wait_s=0.2)
        asked = (ask(batches, prompt, n) for prompt, n in zip(PROMPTS, limits, strict=True))
        return await asyncio.gather(*asked)

    got = asyncio.run(scenario())
    assert engine.sizes == [4, 1]
    alone = [
        engine.generate([prompt], Sampling(max_tokens=n))[0]
        for prompt, n in zip(PROMPTS, limits, strict=True)
    ]
    assert [answer for _, answer in got] == alone
    assert [tokens for tokens, _ in got] == [answer.tokens for answer in alone]


def test_a_short_answer_does_not_wait_for_a_long_one(engine: CountingEngine) -> None:
    finished: list[int] = []

    async def one(batches: Batches, most: int) -> None:
        _, answer = await ask(batches, PROMPTS[2], most)
        finished.append(len(answer.tokens))

    async def scenario() -> None:
        batches = Batches(engine, max_size=4, wait_s=0.2)
        await asyncio.gather(one(batches, 50), one(batches, 2))

    asyncio.run(scenario())
    assert engine.sizes == [2]
    assert finished[0] == 2
    assert finished[1] > 10


def test_a_failing_batch_fails_its_own_requests_and_no_others(engine: CountingEngine) -> None:
    async def scenario() -> Answer:
        batches = Batches(engine, max_size=1, wait_s=0)
        with pytest.raises(ModelError, match="64 tokens"):
            await ask(batches, [20] * 64, 3)
        return (await ask(batches, PROMPTS[0], 3))[1]

    assert len(asyncio.run(scenario()).tokens) <= 3


def test_a_request_that_nobody_waits_for_frees_its_place(engine: CountingEngine) -> None:
    async def leave(batches: Batches) -> None:
        async with aclosing(batches.stream(PROMPTS[2], Sampling(max_tokens=50))) as arrivals:
            async for _ in arrivals:
                return

    async def scenario() -> None:
        batches = Batches(engine, max_size=1, wait_s=0)
        await leave(batches)
        abandoned = asyncio.create_task(ask(batches, PROMPTS[3], 50))
        await asyncio.sleep(0)
        abandoned.cancel()
        await ask(batches, PROMPTS[0], 3)

    asyncio.run(scenario())
    assert engine.sizes == [1, 1]  # the abandoned request was never decoded
