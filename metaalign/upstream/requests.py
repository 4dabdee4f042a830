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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from metaalign.config.teacher import TeacherConfig
from metaalign.examples import Turn


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
        finish_reason: `stop`, or why it ends early: `length`, `content_filter`.
    """

    text: str
    finish_reason: str
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class Served:
    """What a server says of the model that it serves.

    Attributes:
        owner: Who made the server, by the model's card: `metaalign`, `vllm`, `openai`, ...
        identity: Answers belong to it; another one's are not used.
        fingerprint: Of the weights, where the server tells one.
    """

    owner: str = ""
    identity: str = ""
    fingerprint: str = ""

    @property
    def continues(self) -> bool:
        """Whether it goes on from the beginning of an answer."""
        return self.owner in ("metaalign", "vllm", "sglang")


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


def key_of(body: Mapping[str, Any], served: Served) -> str:
    """What an answer is kept under: equal for equal bodies to the same model."""
    told = json.dumps([served.identity, body], sort_keys=True)
    return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()
