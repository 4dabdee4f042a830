"""An asynchronous client of one teacher, with rate limits, retries, a cost limit and stored
answers.

The openai package sends requests, tenacity retries them and aiolimiter limits their rate. Every
answer that arrives is stored before it is used.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

import openai
import tenacity
from aiolimiter import AsyncLimiter
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion

from metaalign.config.teacher import TeacherConfig
from metaalign.errors import UpstreamError
from metaalign.upstream import failures
from metaalign.upstream.answer_files import Answers
from metaalign.upstream.failures import short
from metaalign.upstream.requests import Key, Reply, Request, body_of, find_reply, key_of
from metaalign.upstream.served import Served, named, refused_key

_PATIENCE_S, _PATIENCE = 120.0, 3
"""The server counts as down once every request has failed for this many seconds, and at least this
many requests have."""

_COUNTS = ("prompt_tokens", "completion_tokens")
_CUT_OFF = ("length", "max_tokens", "max_output_tokens")
"""Finish reasons, of several servers, for an answer that reached its token limit."""


class AnswerError(UpstreamError):
    """One request has no usable answer. Its example is left out; the job continues."""


@dataclass
class Spending:
    """Counts of a teacher's requests and tokens, and their cost.

    Attributes:
        asked: Requests that the teacher answered.
        kept: Requests answered from the store, without a call to the server.
        failed: Requests without an answer.
        again: Retries.
        cost: In the currency of the settings' prices.
    """

    asked: int = 0
    kept: int = 0
    failed: int = 0
    again: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0


class Client:
    """Sends requests to one teacher.

    Args:
        name: The teacher's name in the settings, for error messages.
        key: The endpoint's API key.
        answers: The store of answers.
        failed: The store of failed requests, each with its reason.
    """

    def __init__(
        self,
        name: str,
        config: TeacherConfig,
        served: Served,
        *,
        key: str,
        answers: Answers,
        failed: Answers,
    ) -> None:
        self.spending = Spending()
        self._teacher, self._name = name, named(name, config)
        self._config, self._served, self._api_key = config, served, key
        self._answers, self._failed = answers, failed
        self._failures, self._failing_since = 0, 0.0

    @asynccontextmanager
    async def opened(self) -> AsyncIterator["Client"]:
        """Open the connection; the client can be used inside this context."""
        config, pace = self._config, self._config.requests_per_minute
        self._slots = asyncio.Semaphore(config.concurrency)
        # A limit of one request per interval spreads a minute's requests evenly.
        self._requests = AsyncLimiter(1, 60 / pace) if pace else None
        most = config.tokens_per_minute
        self._tokens = AsyncLimiter(most, 60) if most else None
        async with AsyncOpenAI(
            base_url=config.base_url, api_key=self._api_key, timeout=config.timeout_s, max_retries=0
        ) as self._server:
            yield self

    async def answer(self, request: Request) -> Reply:
        """The stored answer to a request; if there is none, the server's, which is then stored.

        Raises:
            AnswerError: this request has no answer.
            UpstreamError: no further request can succeed; the message says what to change.
        """
        key = key_of(request, self._config, self._served)
        async with self._answers.lock(key.name):  # an equal request may be under way
            kept = find_reply(self._answers, key)
            if kept is not None:
                self.spending.kept += 1
                return kept
            noted = self._failed.find(key.of_failure)
            if noted is not None:
                raise AnswerError(noted["reason"])
            async with self._slots:
                try:
                    return await self._fetch(request, key)
                except AnswerError as error:
                    self.spending.failed += 1
                    self._failed.keep(key.of_failure, {"reason": str(error)})
                    raise

    async def _fetch(self, request: Request, key: Key) -> Reply:
        """The server's answer, which is stored.

        Raises:
            AnswerError, UpstreamError: as in `answer`.
        """
        if not self._served.reached:
            raise UpstreamError(f"{self._name}: no server answers, and not every answer is stored")
        try:
            completion = await self._send(body_of(request, self._config, self._served))
        except (openai.APIError, ValueError) as error:
            raise self._to_upstream_error(error) from error
        reply = self._read(completion, key.limit)
        # Replace a stored answer that was cut off, but not one that another job stored meanwhile.
        outgrown = self._answers.find(key.name) and find_reply(self._answers, key) is None
        kept = self._answers.keep(key.name, asdict(reply), replace=bool(outgrown))
        self._failures = 0
        self._count(reply)
        if getattr(completion, "usage", None) is None and self._config.max_cost is not None:
            raise UpstreamError(
                f"{self._name}: the server reports no token usage, so max_cost cannot be checked; "
                "leave max_cost out, or use another server"
            )
        return Reply(**kept)

    def _to_upstream_error(self, error: Exception) -> UpstreamError:
        """An AnswerError if only this request failed, else an UpstreamError that ends the job."""
        message = f"{self._name}: {short(error)}"
        one_text = failures.status_of(error) == 403 and self.spending.asked
        if failures.is_closed(error) and not one_text:
            return UpstreamError(refused_key(self._teacher, self._config, error))
        if failures.is_out_of_credit(error):
            return UpstreamError(f"{message}: no credit is left")
        if failures.may_pass(error) and self._is_down():
            return UpstreamError(
                f"{self._name}: every request has failed for {_PATIENCE_S:.0f} seconds, the last "
                f"with: {short(error)}; the answers so far are stored: start the job again when "
                "the server answers"
            )
        return AnswerError(message)

    def _is_down(self) -> bool:
        """Count one more failure; return whether requests have failed for long enough."""
        now = time.monotonic()
        self._failing_since = now if self._failures == 0 else self._failing_since
        self._failures += 1
        return self._failures >= _PATIENCE and now - self._failing_since >= _PATIENCE_S

    async def _send(self, body: Mapping[str, Any]) -> object:
        """Send a request, with retries after temporary failures; return the completion."""
        attempts = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(failures.may_pass),
            stop=tenacity.stop_after_attempt(1 + self._config.max_retries),
            wait=failures.pause,
            reraise=True,
        )
        async for attempt in attempts:
            with attempt:
                self.spending.again += attempt.retry_state.attempt_number > 1
                await self._wait_for_rate(body)
                self._check_cost()
                return await self._server.post(
                    "/chat/completions", body=dict(body), cast_to=ChatCompletion
                )
        raise AssertionError("tenacity raises the last failure")

    async def _wait_for_rate(self, body: Mapping[str, Any]) -> None:
        """Wait until the rate limits allow the request, assuming the average tokens per request."""
        spent = self.spending
        if self._tokens is not None:
            tokens = spent.prompt_tokens + spent.completion_tokens
            likely = tokens / spent.asked if tokens else _most_tokens(body)
            await self._tokens.acquire(min(likely, self._tokens.max_rate))
        if self._requests is not None:
            await self._requests.acquire()

    def _check_cost(self) -> None:
        limit = self._config.max_cost
        if limit is not None and self.spending.cost >= limit:
            raise UpstreamError(
                f"{self._name}: {self.spending.cost:.4g} is spent, and max_cost is {limit:g}. The "
                "answers are stored: start the job again to continue, or raise max_cost"
            )

    def _read(self, completion: Any, limit: int) -> Reply:
        """Read a completion. Fields that some servers omit have defaults."""
        try:
            choice, usage = completion.choices[0], getattr(completion, "usage", None)
            text, reason = choice.message.content or "", choice.finish_reason or "stop"
            counts = [int(getattr(usage, name, 0) or 0) for name in _COUNTS]
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            shown = short(completion)
            raise AnswerError(f"{self._name}: expected a chat completion, got {shown}") from error
        fingerprint = getattr(completion, "system_fingerprint", None)
        if self._served.fingerprint and fingerprint != self._served.fingerprint:
            raise UpstreamError(
                f"{self._name}: the server now serves another model: fingerprint {fingerprint!r}, "
                f"expected {self._served.fingerprint!r}; start the job again"
            )
        # A model may write half a character.
        valid = str(text).encode("utf-8", "replace").decode()
        reason = str(reason).lower()
        return Reply(valid, "length" if reason in _CUT_OFF else reason, *counts, limit=limit)

    def _count(self, reply: Reply) -> None:
        self.spending.asked += 1
        self.spending.prompt_tokens += reply.prompt_tokens
        self.spending.completion_tokens += reply.completion_tokens
        paid = reply.prompt_tokens * self._config.input_price
        paid += reply.completion_tokens * self._config.output_price
        self.spending.cost += paid / 1e6


def _most_tokens(body: Mapping[str, Any]) -> float:
    """An estimate of a request's tokens: one for four characters, plus the longest answer."""
    characters = sum(len(message["content"]) for message in body["messages"])
    return characters / 4 + (body.get("max_tokens") or 0)
