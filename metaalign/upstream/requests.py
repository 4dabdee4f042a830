"""What is asked of an upstream model, and under which key its answer is kept. Knows no network.

A body that goes to metaalign's server, and to any other:

    {"model": "metaalign", "messages": [{"role": "system", "content": "Be brief."},
                                        {"role": "user", "content": "Capital of Peru?"}],
     "user_info": "I am Ana.", "max_tokens": 64, "temperature": 1.0, "seed": 1364076727}
    {"model": "large", "messages": [{"role": "system", "content":
         "Be brief.\\n\\nWhat the user says of themselves:\\nI am Ana."}, ...], ...}
"""

import hashlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from metaalign.config.teacher import TeacherConfig
from metaalign.examples import Turn
from metaalign.upstream.answers import Answers
from metaalign.upstream.served import Served


@dataclass(frozen=True)
class Request:
    """One prompt to answer, and how.

    Attributes:
        turns: Ends in a user's query.
        head: Beginning of the answer, which goes on from it.
        draw: Names the draw: equal requests of another draw may be answered otherwise. Not read at
            temperature 0.
    """

    turns: tuple[Turn, ...]
    system_info: str = ""
    user_info: str = ""
    head: str = ""
    max_tokens: int = 1024
    temperature: float = 1.0
    top_p: float | None = None
    draw: str = ""


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        text: The answer, or how it goes on from the request's head.
        finish_reason: `length` or `content_filter` where it ends early; else it came to its end.
        limit: Most tokens that it was given.
    """

    text: str
    finish_reason: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    limit: int = 0


def body_of(request: Request, config: TeacherConfig, served: Served) -> dict[str, Any]:
    """The JSON that is sent."""
    fields = config.tiers == "fields" or (config.tiers == "auto" and served.owner == "metaalign")
    body: dict[str, Any] = {
        "model": config.model,
        "messages": list(_messages(request, fields=fields)),
        "user_info": request.user_info or None if fields else None,
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "seed": zlib.crc32(request.draw.encode()) >> 1 if request.temperature else None,
    }
    if request.head:
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    return {name: value for name, value in {**body, **config.extra}.items() if value is not None}


def _messages(request: Request, *, fields: bool) -> Iterator[dict[str, str]]:
    system = [request.system_info]
    if request.user_info and not fields:
        system.append(f"What the user says of themselves:\n{request.user_info}")
    if any(system):
        yield {"role": "system", "content": "\n\n".join(text for text in system if text)}
    for turn in request.turns:
        message = {"role": turn.role, "content": turn.text}
        if turn.user_info and fields:
            message["user_info"] = turn.user_info
        elif turn.user_info:
            message["content"] = f"(What I say of myself now: {turn.user_info})\n\n{turn.text}"
        yield message
    if request.head:
        yield {"role": "assistant", "content": request.head}


def key_of(request: Request, config: TeacherConfig, served: Served) -> str:
    """What an answer is kept under: equal for equal requests to the same model.

    How long it may be does not count: one that came to its end is no other under a higher limit.
    """
    body = body_of(request, config, served)
    body.pop("max_tokens", None)
    draw = request.draw if request.temperature else ""
    told = json.dumps([served.identity, draw, body], sort_keys=True)
    return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()


def find_reply(answers: Answers, key: str, request: Request) -> Reply | None:
    """The kept answer to a request; None where there is none, or it was cut off too early."""
    found = answers.find(key)
    reply = None if found is None else Reply(**found)
    if reply is not None and reply.finish_reason == "length" and reply.limit < request.max_tokens:
        return None
    return reply
