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
from typing import Any, NamedTuple

from metaalign.config.teacher import TeacherConfig
from metaalign.examples import Turn
from metaalign.upstream.answer_files import Answers
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


class Key(NamedTuple):
    """What an answer is kept under, and how long it may be.

    Attributes:
        name: Equal for equal requests to the same model. How long the answer may be does not
            count: one that came to its end is no other under a higher limit.
        limit: Most tokens that it may have.
    """

    name: str
    limit: int

    @property
    def of_failure(self) -> str:
        """What it is noted under that there is no answer; that may well be for the limit."""
        return f"{self.name}-{self.limit}"


def key_of(request: Request, config: TeacherConfig, served: Served) -> Key:
    """The key of a request."""
    body = body_of(request, config, served)
    limits = [body.pop(name, None) for name in _LIMITS]
    limit = next((each for each in limits if each), request.max_tokens)
    draw = request.draw if request.temperature else ""
    told = json.dumps([served.identity, draw, body], sort_keys=True)
    return Key(hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest(), limit)


_LIMITS = ("max_tokens", "max_completion_tokens")


def find_reply(answers: Answers, key: Key) -> Reply | None:
    """The kept answer to a request; None where there is none, or it was cut off too early."""
    found = answers.find(key.name)
    reply = None if found is None else Reply(**found)
    if reply is not None and reply.finish_reason == "length" and reply.limit < key.limit:
        return None
    return reply
