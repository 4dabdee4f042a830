"""A client that asks much of one endpoint: bounded, evenly paced, patient, and paid once.

openai speaks to the server, tenacity tries again, aiolimiter keeps the rates. An answer that came
is kept before anything else happens to it, whatever it says.
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
"""Seconds of failures alone, of so many requests, after which the server counts as gone."""


_COUNTS = ("prompt_tokens", "completion_tokens")
_CUT_OFF = ("length", "max_tokens", "max_output_tokens")
"""What servers say of an answer that came to its limit."""


class AnswerError(UpstreamError):
    """One request that has no answer of use. Its example is left out; others go on."""


@dataclass
class Spending:
    """What was asked of a teacher, and what it cost.

    Attributes:
        asked: Requests that it answered.
        kept: Requests whose answer an earlier job, or an equal request, had paid for.
        failed: Requests without an answer.
        again: Times a request was sent again.
        cost: By the settings' prices.
    """

    asked: int = 0
    kept: int = 0
    failed: int = 0
    again: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0


class Client:
    """Asks one teacher.

    Args:
        name: The teacher's, for errors.
        key: Of the endpoint.
        answers: Where answers are kept.
        failed: Where requests without an answer are noted, with the reason.
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
        """The client, while its event loop runs."""
        config, pace = self._config, self._config.requests_per_minute
        self._slots = asyncio.Semaphore(config.concurrency)
        # One at a time, so that a minute's requests do not come all at once.
        self._requests = AsyncLimiter(1, 60 / pace) if pace else None
        most = config.tokens_per_minute
        self._tokens = AsyncLimiter(most, 60) if most else None
        async with AsyncOpenAI(
            base_url=config.base_url, api_key=self._api_key, timeout=config.timeout_s, max_retries=0
        ) as self._server:
            yield self

    async def answer(self, request: Request) -> Reply:
        """The kept answer to a request, or the server's, which is kept.

        Raises:
            AnswerError: this request has none.
            UpstreamError: the server is not to be asked any more; says what to change.
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
                    return await self._asked(request, key)
                except AnswerError as error:
                    self.spending.failed += 1
                    self._failed.keep(key.of_failure, {"reason": str(error)})
                    raise

    async def _asked(self, request: Request, key: Key) -> Reply:
        if not self._served.reached:
            raise UpstreamError(f"{self._name}: no server answers, and not every answer is kept")
        try:
            completion = await self._tried(body_of(request, self._config, self._served))
        except (openai.APIError, ValueError) as error:
            raise self._judged(error) from error
        reply = self._read(completion, key.limit)
        # One that was cut off gives way; one that another job kept meanwhile does not.
        outgrown = self._answers.find(key.name) and find_reply(self._answers, key) is None
        kept = self._answers.keep(key.name, asdict(reply), replace=bool(outgrown))
        self._failures = 0
        self._count(reply)
        if getattr(completion, "usage", None) is None and self._config.max_cost is not None:
            raise UpstreamError(f"{self._name}: it tells no usage, so max_cost cannot be kept")
        return Reply(**kept)

    def _judged(self, error: Exception) -> UpstreamError:
        """What a request that failed means for the others."""
        told = f"{self._name}: {short(error)}"
        one_text = failures.status_of(error) == 403 and self.spending.asked
        if failures.is_closed(error) and not one_text:
            return UpstreamError(refused_key(self._teacher, self._config, error))
        if failures.is_out_of_credit(error):
            return UpstreamError(f"{told}: no credit is left")
        if failures.may_pass(error) and self._is_gone():
            return UpstreamError(
                f"{self._name}: nothing but failures for {_PATIENCE_S:.0f} seconds, last "
                f"{short(error)}; the answers so far are kept: start the job again when it answers"
            )
        return AnswerError(told)

    def _is_gone(self) -> bool:
        """Whether requests fail since long, this one the last of them."""
        now = time.monotonic()
        self._failing_since = now if self._failures == 0 else self._failing_since
        self._failures += 1
        return self._failures >= _PATIENCE and now - self._failing_since >= _PATIENCE_S

    async def _tried(self, body: Mapping[str, Any]) -> object:
        """The completion, asked for again after failures that may pass."""
        attempts = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(failures.may_pass),
            stop=tenacity.stop_after_attempt(1 + self._config.max_retries),
            wait=failures.pause,
            reraise=True,
        )
        async for attempt in attempts:
            with attempt:
                self.spending.again += attempt.retry_state.attempt_number > 1
                await self._paced(body)
                self._check_cost()
                return await self._server.post(
                    "/chat/completions", body=dict(body), cast_to=ChatCompletion
                )
        raise AssertionError("tenacity raises the last failure")

    async def _paced(self, body: Mapping[str, Any]) -> None:
        """Wait for a place in the minute, for as many tokens as a request took so far."""
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
                "answers are kept: start the job again to go on, or raise max_cost"
            )

    def _read(self, completion: Any, limit: int) -> Reply:
        """What a completion says; servers differ in what they leave out."""
        try:
            choice, usage = completion.choices[0], getattr(completion, "usage", None)
            text, reason = choice.message.content or "", choice.finish_reason or "stop"
            counts = [int(getattr(usage, name, 0) or 0) for name in _COUNTS]
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            shown = short(completion)
            raise AnswerError(f"{self._name}: expected a chat completion, got {shown}") from error
        told = getattr(completion, "system_fingerprint", None)
        if self._served.fingerprint and told != self._served.fingerprint:
            raise UpstreamError(f"{self._name}: another model was put in its place meanwhile")
        whole = str(text).encode("utf-8", "replace").decode()  # a model may write half a character
        told = str(reason).lower()
        return Reply(whole, "length" if told in _CUT_OFF else told, *counts, limit=limit)

    def _count(self, reply: Reply) -> None:
        self.spending.asked += 1
        self.spending.prompt_tokens += reply.prompt_tokens
        self.spending.completion_tokens += reply.completion_tokens
        paid = reply.prompt_tokens * self._config.input_price
        paid += reply.completion_tokens * self._config.output_price
        self.spending.cost += paid / 1e6


def _most_tokens(body: Mapping[str, Any]) -> float:
    """A guess at what a request takes: a token for four characters, and its longest answer."""
    said = sum(len(message["content"]) for message in body["messages"])
    return said / 4 + (body.get("max_tokens") or 0)
