"""The HTTP endpoint: a plain FastAPI app around an engine.

Does not import Ray; `app.py` deploys it. Every error response has OpenAI's shape.
"""

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from metaalign.config import ServeConfig
from metaalign.errors import MetaAlignError, RequestError
from metaalign.generate.embedded import Answer, EmbeddedEngine, Sampling
from metaalign.serve.api import Prompt, render, to_sampling, to_segments
from metaalign.serve.batches import Batches
from metaalign.serve.bodies import ChatRequest
from metaalign.serve.refusals import Refusal, refuse_invalid
from metaalign.template import Template

logger = logging.getLogger(__name__)

_FAILURE = Refusal(500, "the server failed; see its log")


class ChatService:
    """Answers chat requests with one engine."""

    def __init__(self, engine: EmbeddedEngine, config: ServeConfig) -> None:
        self.config = config
        self.template, self.fingerprint = engine.template, engine.fingerprint
        self.context = engine.context
        self.created = int(time.time())
        self._batches = Batches(engine, max_size=config.max_batch_size, wait_s=config.batch_wait_s)

    def card(self) -> dict[str, Any]:
        """The model's entry in OpenAI's model list.

        `max_model_len` is vLLM's addition. `fingerprint` is our own: it changes if another model is
        served under the same name.
        """
        return {
            "id": self.config.name,
            "object": "model",
            "created": self.created,
            "owned_by": "metaalign",
            "fingerprint": self.fingerprint,
            "max_model_len": self.context,
        }

    def check_model(self, name: str) -> None:
        """Raise a RequestError with status 404 unless `name` is the served model."""
        if name != self.config.name:
            message = f"model: unknown model {name!r}; this server serves {self.config.name!r}"
            raise RequestError(Refusal(404, message, "model", "model_not_found"))

    async def complete(self, request: ChatRequest) -> Response:
        """Answer one chat request, as JSON or as a stream of server-sent events."""
        self.check_model(request.model)
        segments = to_segments(request)
        prompt = await asyncio.to_thread(render, self.template, segments)
        sampling = to_sampling(request, prompt, config=self.config, context=self.context)
        head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": self.config.name,
            "system_fingerprint": self.fingerprint,
        }
        if request.stream:
            usage = request.stream_options is not None and request.stream_options.include_usage
            events = self._events(head, prompt, sampling, with_usage=usage)
            return StreamingResponse(events, media_type="text/event-stream")
        return JSONResponse(await self._whole(head, prompt, sampling))

    async def _whole(
        self, head: dict[str, Any], prompt: Prompt, sampling: Sampling
    ) -> dict[str, Any]:
        answer = Answer([], "stop")
        async with aclosing(self._batches.stream(prompt.tokens, sampling)) as arrivals:
            async for arrival in arrivals:
                if isinstance(arrival, Answer):
                    answer = arrival
        text = self.template.decode_after(prompt.head, answer.tokens)
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": answer.finish_reason}
        return {
            **head,
            "object": "chat.completion",
            "choices": [{**choice, "logprobs": None}],
            "usage": _usage(prompt, answer),
        }

    async def _events(
        self, head: dict[str, Any], prompt: Prompt, sampling: Sampling, *, with_usage: bool
    ) -> AsyncIterator[str]:
        """The server-sent events. A failure of the engine is sent as an event, since the HTTP
        status was sent before."""
        head = {**head, "object": "chat.completion.chunk"}
        chunks = self._chunks(head, prompt, sampling, with_usage=with_usage)
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    yield chunk
        except (MetaAlignError, RuntimeError, LookupError, ValueError, TypeError):
            logger.exception("a stream failed")
            yield _event(_FAILURE.body())
        yield "data: [DONE]\n\n"

    async def _chunks(
        self, head: dict[str, Any], prompt: Prompt, sampling: Sampling, *, with_usage: bool
    ) -> AsyncGenerator[str, None]:
        text = _ArrivingText(self.template, prompt.head)
        answer = Answer([], "stop")
        yield _chunk(head, {"role": "assistant", "content": ""})
        async with aclosing(self._batches.stream(prompt.tokens, sampling)) as arrivals:
            async for arrival in arrivals:
                answer = arrival if isinstance(arrival, Answer) else answer
                if news := text.take(arrival):
                    yield _chunk(head, {"content": news})
        yield _chunk(head, {}, answer.finish_reason)
        if with_usage:
            yield _event({**head, "choices": [], "usage": _usage(prompt, answer)})


class _ArrivingText:
    """Decodes an answer whose tokens arrive a few at a time."""

    def __init__(self, template: Template, head: Sequence[int] = ()) -> None:
        self._template, self._head = template, head
        self._tokens: list[int] = []
        self._sent = ""

    def take(self, arrival: Sequence[int] | Answer) -> str:
        """The new text. A character is held back until all of its bytes have arrived."""
        whole = isinstance(arrival, Answer)
        self._tokens = arrival.tokens if whole else [*self._tokens, *arrival]
        text = self._template.decode_after(self._head, self._tokens)

        if not whole and text.endswith("\ufffd"):
            return ""
        news, self._sent = text[len(self._sent) :], text
        return news


def _usage(prompt: Prompt, answer: Answer) -> dict[str, int]:
    """OpenAI's token counts. The token that ended the answer is not counted."""
    sent, generated = len(prompt.tokens), len(answer.tokens)
    return {
        "prompt_tokens": sent,
        "completion_tokens": generated,
        "total_tokens": sent + generated,
    }


def _chunk(head: dict[str, Any], delta: dict[str, str], finish_reason: str | None = None) -> str:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return _event({**head, "choices": [choice]})


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"


def create_app(engine: EmbeddedEngine, config: ServeConfig) -> FastAPI:
    """The FastAPI app that answers with an engine in this process."""
    service = ChatService(engine, config)
    app = FastAPI(title="metaalign")
    for kind in (RequestError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _refuse)

    @app.post("/v1/chat/completions")
    async def chat(request: ChatRequest) -> Response:
        return await service.complete(request)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [service.card()]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        service.check_model(name)
        return service.card()

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok", "model": config.name, "template": engine.template.fingerprint}

    return app


async def _refuse(_: Request, error: Exception) -> JSONResponse:
    if isinstance(error, RequestError):
        refusal = error.args[0]
    elif isinstance(error, RequestValidationError):
        refusal = refuse_invalid(error.errors())
    elif isinstance(error, HTTPException):
        refusal = Refusal(error.status_code, str(error.detail))
    else:
        refusal = _FAILURE
    return JSONResponse(refusal.body(), status_code=refusal.status)
