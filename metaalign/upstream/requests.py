"""Requests to an upstream model, their JSON bodies, and the keys that answers are stored under.

Sends nothing. The body of one request to metaalign's server, and to any other server:

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
    """One prompt, and how to sample its answer.

    Attributes:
        turns: Ends in a user's query.
        head: Beginning of the answer; the model continues it.
        draw: Name of the random draw: requests that differ only in it may receive different
            answers. Ignored at temperature 0.
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
    """The answer to a request.

    Attributes:
        text: The answer, without the request's head.
        finish_reason: `length` or `content_filter` if the answer was cut off; any other value means
            that it is complete.
        limit: Most tokens that the request allowed.
    """

    text: str
    finish_reason: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    limit: int = 0


def body_of(request: Request, config: TeacherConfig, served: Served) -> dict[str, Any]:
    """The JSON body of a request."""
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
    """The key of an answer in the store, and the request's token limit.

    Attributes:
        name: Equal for equal requests to the same model. It does not depend on the token limit,
            since a complete answer is the same under a higher limit.
        limit: Most tokens of the answer.
    """

    name: str
    limit: int

    @property
    def of_failure(self) -> str:
        """The key of a failed request. It includes the limit, which may have caused the failure."""
        return f"{self.name}-{self.limit}"


def key_of(request: Request, config: TeacherConfig, served: Served) -> Key:
    """The key under which the answer to a request is stored."""
    body = body_of(request, config, served)
    limits = [body.pop(name, None) for name in _LIMITS]
    limit = next((each for each in limits if each), request.max_tokens)
    draw = request.draw if request.temperature else ""
    hashed = json.dumps([served.identity, draw, body], sort_keys=True)
    return Key(hashlib.sha256(hashed.encode("utf-8", "surrogatepass")).hexdigest(), limit)


_LIMITS = ("max_tokens", "max_completion_tokens")


def find_reply(answers: Answers, key: Key) -> Reply | None:
    """The stored answer to a request; None if there is none, or if it was cut off at a lower
    limit."""
    found = answers.find(key.name)
    reply = None if found is None else Reply(**found)
    if reply is not None and reply.finish_reason == "length" and reply.limit < key.limit:
        return None
    return reply
