"""A client that asks much of one endpoint: bounded, evenly paced, patient, and paid once.

openai speaks to the server, tenacity tries again, aiolimiter keeps the rates. An answer that came
is kept before anything else happens to it, whatever it says.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any
from weakref import WeakValueDictionary

import openai
import tenacity
from aiolimiter import AsyncLimiter
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion

from metaalign.config.teacher import TeacherConfig
from metaalign.errors import UpstreamError
from metaalign.upstream.answers import Answers
from metaalign.upstream.requests import Reply, Request, Served, body_of, key_of

_PATIENCE_S = 120.0
"""Seconds of failures alone after which the server counts as gone."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0

_PASSING = frozenset({408, 409, 425, 429})
"""Status codes below 500 of failures that may pass."""

_CLOSED = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)
"""Answers of a server that will answer nothing else; 403 may also refuse a single text."""


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


def key_in_environment(config: TeacherConfig) -> str:
    """The key of an endpoint; servers that want none get a word for it."""
    return os.environ.get(config.key) or "none"


def look_up(name: str, config: TeacherConfig) -> Served:
    """What the server says of the model. A server without a list of models says nothing.

    Raises:
        UpstreamError: it cannot be reached, or refuses the key.
    """
    card: Any = None
    try:
        with OpenAI(
            base_url=config.base_url, api_key=key_in_environment(config), timeout=config.timeout_s
        ) as server:
            cards = server.models.list().data or []
        card = next((each for each in cards if each.id == config.model), None)
    except openai.APIConnectionError as error:
        raise UpstreamError(f"{_named(name, config)}: no server answers ({error})") from error
    except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
        raise UpstreamError(_refused_key(name, config, error)) from error
    except (openai.APIStatusError, ValueError, AttributeError, TypeError):
        pass  # It has no list of models, or one of another shape.
    owner = str(getattr(card, "owned_by", "") or "")
    fingerprint = str(getattr(card, "fingerprint", "") or "") if owner == "metaalign" else ""
    identity = f"{fingerprint}{config.version}" or config.base_url.rstrip("/")
    return Served(owner=owner, identity=identity, fingerprint=fingerprint)


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
        self._name, self._config, self._served = _named(name, config), config, served
        self._api_key, self._teacher = key, name
        self._answers, self._failed = answers, failed
        self._answered_at = time.monotonic()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def opened(self) -> AsyncIterator["Client"]:
        """The client, while its event loop runs."""
        config = self._config
        self._slots = asyncio.Semaphore(config.concurrency)
        # One at a time, so that a minute's requests do not come all at once.
        pace = config.requests_per_minute
        self._requests = AsyncLimiter(1, 60 / pace) if pace else None
        self._tokens = (
            AsyncLimiter(config.tokens_per_minute, 60) if config.tokens_per_minute else None
        )
        async with AsyncOpenAI(
            base_url=config.base_url,
            api_key=self._api_key,
            timeout=config.timeout_s,
            max_retries=0,
        ) as self._server:
            yield self

    async def answer(self, request: Request) -> Reply:
        """The kept answer to a request, or the server's, which is kept.

        Raises:
            AnswerError: this request has none.
            UpstreamError: the server is not to be asked any more; says what to change.
        """
        body = body_of(request, self._config, self._served)
        key = key_of(body, self._served)
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock:  # an equal request may be under way
            kept = self._answers.find(key)
            if kept is not None:
                self.spending.kept += 1
                return Reply(**kept)
            noted = self._failed.find(key)
            if noted is not None:
                raise AnswerError(noted["reason"])
            async with self._slots:
                try:
                    reply = await self._asked(body)
                except AnswerError as error:
                    self.spending.failed += 1
                    self._failed.keep(key, {"reason": str(error)})
                    raise
            return Reply(**self._answers.keep(key, asdict(reply)))

    async def _asked(self, body: Mapping[str, Any]) -> Reply:
        self._check_cost()
        try:
            completion = await self._tried(body)
        except (openai.APIError, ValueError) as error:
            raise self._judged(error) from error
        reply = self._read(completion)
        self._answered_at = time.monotonic()
        self._count(reply)
        if self._tokens is not None:
            used = reply.prompt_tokens + reply.completion_tokens
            await self._tokens.acquire(min(used, self._tokens.max_rate))
        return reply

    def _judged(self, error: Exception) -> UpstreamError:
        """What a request that failed means for the others."""
        told = f"{self._name}: {_short(error)}"
        if isinstance(error, _CLOSED) and not (_status(error) == 403 and self.spending.asked):
            return UpstreamError(_refused_key(self._teacher, self._config, error))
        if _is_out_of_quota(error):
            return UpstreamError(f"{told}: no credit is left")
        if _may_pass(error) and time.monotonic() - self._answered_at > _PATIENCE_S:
            return UpstreamError(
                f"{self._name}: nothing but failures for {_PATIENCE_S:.0f} seconds, last "
                f"{_short(error)}; the answers so far are kept: start the job again when it answers"
            )
        return AnswerError(told)

    async def _tried(self, body: Mapping[str, Any]) -> object:
        """The completion, asked for again after failures that may pass."""
        attempts = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(_may_pass),
            stop=tenacity.stop_after_attempt(1 + self._config.max_retries),
            wait=_pause,
            reraise=True,
        )
        async for attempt in attempts:
            with attempt:
                self.spending.again += attempt.retry_state.attempt_number > 1
                if self._requests is not None:
                    await self._requests.acquire()
                return await self._server.post(
                    "/chat/completions", body=dict(body), cast_to=ChatCompletion
                )
        raise AssertionError("tenacity raises the last failure")

    def _check_cost(self) -> None:
        limit = self._config.max_cost
        if limit is not None and self.spending.cost >= limit:
            raise UpstreamError(
                f"{self._name}: {self.spending.cost:.4g} is spent, and max_cost is {limit:g}. The "
                "answers are kept: start the job again to go on, or raise max_cost"
            )

    def _read(self, completion: Any) -> Reply:
        """What a completion says; servers differ in what they leave out."""
        try:
            choice = completion.choices[0]
            text, reason = choice.message.content or "", choice.finish_reason or "stop"
        except (AttributeError, IndexError, TypeError) as error:
            shown = _short(completion)
            raise AnswerError(f"{self._name}: expected a chat completion, got {shown}") from error
        told = getattr(completion, "system_fingerprint", None)
        if self._served.fingerprint and told != self._served.fingerprint:
            raise UpstreamError(f"{self._name}: another model was put in its place meanwhile")
        usage = getattr(completion, "usage", None)
        if usage is None and self._config.max_cost is not None:
            raise UpstreamError(f"{self._name}: it tells no usage, so max_cost cannot be kept")
        counts = [getattr(usage, name, 0) or 0 for name in ("prompt_tokens", "completion_tokens")]
        return Reply(str(text), str(reason), *map(int, counts))

    def _count(self, reply: Reply) -> None:
        self.spending.asked += 1
        self.spending.prompt_tokens += reply.prompt_tokens
        self.spending.completion_tokens += reply.completion_tokens
        paid = reply.prompt_tokens * self._config.input_price
        paid += reply.completion_tokens * self._config.output_price
        self.spending.cost += paid / 1e6


def _status(error: object) -> int:
    return getattr(error, "status_code", None) or 0


def _may_pass(error: BaseException) -> bool:
    passing = _status(error) in _PASSING or _status(error) >= 500
    gone = isinstance(error, openai.APIConnectionError)
    return (passing or gone) and not _is_out_of_quota(error)


def _is_out_of_quota(error: object) -> bool:
    return _status(error) == 402 or getattr(error, "code", None) == "insufficient_quota"


def _pause(state: tenacity.RetryCallState) -> float:
    """Seconds before a request is sent again: what the server asks for, or twice the last pause."""
    doubling = tenacity.wait_random_exponential(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)(state)
    error = state.outcome.exception() if state.outcome is not None else None
    headers = getattr(getattr(error, "response", None), "headers", {})
    try:
        return max(doubling, float(headers.get("retry-after", 0)))
    except ValueError:  # a date
        return _LONGEST_PAUSE_S


def _named(name: str, config: TeacherConfig) -> str:
    return f"teachers.{name}: {config.model} at {config.base_url}"


def _refused_key(name: str, config: TeacherConfig, error: openai.APIStatusError) -> str:
    hint = ""
    if error.status_code in (401, 403):
        is_set = "" if os.environ.get(config.key) else ", which is not set"
        hint = f"; its key is read from ${config.key}{is_set}"
    return f"{_named(name, config)}: {_short(error)}{hint}"


def _short(told: object) -> str:
    return " ".join(str(told).split())[:300]
