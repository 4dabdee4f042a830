"""Decodes requests that arrive together in one batch; each caller receives its own tokens.

Handles token ids only: no text and no HTTP.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence

from metaalign.generate.embedded import Answer, EmbeddedEngine, Sampling


class _Waiting:
    """One queued request, and the queue that receives its tokens."""

    def __init__(self, prompt: Sequence[int], sampling: Sampling) -> None:
        self.prompt = prompt
        self.sampling = sampling
        self.arrivals: asyncio.Queue[int | Answer | BaseException] = asyncio.Queue()
        self.wanted = True


class Batches:
    """Collects requests into batches for one engine, in the order of their arrival.

    A request that arrives while a batch is being decoded waits for the next batch.
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
        """Yield the tokens of an answer as they arrive, one list at a time, then the whole Answer.

        If the caller stops iterating, the engine stops decoding this request.
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
            # If a batch fails, its own requests fail; the server goes on.
            if failure := decoding.exception():
                for waiting in batch:
                    waiting.arrivals.put_nowait(failure)

    async def _collect(self) -> list[_Waiting]:
        """Wait for one request, then collect more for at most `wait_s` seconds."""
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
