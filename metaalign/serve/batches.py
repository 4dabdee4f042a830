"""Requests that arrive together are decoded together; each caller gets its own tokens.

Knows token ids and asyncio; no text and no HTTP.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence

from metaalign.generate.embedded import Answer, EmbeddedEngine, Sampling


class _Waiting:
    """One request: what it asks, and the place where its tokens arrive."""

    def __init__(self, prompt: Sequence[int], sampling: Sampling) -> None:
        self.prompt = prompt
        self.sampling = sampling
        self.arrivals: asyncio.Queue[int | Answer | BaseException] = asyncio.Queue()
        self.wanted = True


class Batches:
    """Collects requests into batches for one engine, in the order in which they come.

    A request that comes while a batch is decoded waits for the next one.
    """

    def __init__(self, engine: EmbeddedEngine, *, max_size: int, wait_s: float) -> None:
        self._engine = engine
        self._max_size = max_size
        self._wait_s = wait_s
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._loop: asyncio.Task[None] | None = None

    async def stream(
        self, prompt: Sequence[int], sampling: Sampling
    ) -> AsyncGenerator[list[int] | Answer, None]:
        """The tokens of an answer, as many at a time as have arrived; at last the whole Answer.

        Whoever stops iterating frees the request's place in its batch.
        """
        if self._loop is None:
            self._loop = asyncio.create_task(self._run())
        waiting = _Waiting(prompt, sampling)
        self._queue.put_nowait(waiting)
        try:
            while True:
                arrived = [await waiting.arrivals.get()]
                while not waiting.arrivals.empty():
                    arrived.append(waiting.arrivals.get_nowait())
                if tokens := [token for token in arrived if isinstance(token, int)]:
                    yield tokens
                if isinstance(arrived[-1], BaseException):
                    raise arrived[-1]
                if isinstance(arrived[-1], Answer):
                    yield arrived[-1]
                    return
        finally:
            waiting.wanted = False

    async def _run(self) -> None:
        while True:
            batch = [waiting for waiting in await self._collect() if waiting.wanted]
            if not batch:
                continue
            decoding = asyncio.ensure_future(
                asyncio.to_thread(self._decode, batch, asyncio.get_running_loop())
            )
            await asyncio.wait([decoding])
            # A batch that fails takes its own requests along, not the server.
            if failure := decoding.exception():
                for waiting in batch:
                    waiting.arrivals.put_nowait(failure)

    async def _collect(self) -> list[_Waiting]:
        """At least one request, and those that follow soon enough."""
        batch = [await self._queue.get()]
        deadline = asyncio.get_running_loop().time() + self._wait_s
        while len(batch) < self._max_size:
            try:
                async with asyncio.timeout_at(deadline):
                    batch.append(await self._queue.get())
            except TimeoutError:
                break
        return batch

    def _decode(self, batch: Sequence[_Waiting], loop: asyncio.AbstractEventLoop) -> None:
        def pass_on(number: int, arrival: int | Answer) -> bool:
            loop.call_soon_threadsafe(batch[number].arrivals.put_nowait, arrival)
            return batch[number].wanted

        self._engine.generate(
            [waiting.prompt for waiting in batch], [waiting.sampling for waiting in batch], pass_on
        )
