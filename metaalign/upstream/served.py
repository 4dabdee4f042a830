"""What a server says of a model before it is asked for anything, and what is remembered of it."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import openai
from openai import OpenAI

from metaalign.config.teacher import TeacherConfig
from metaalign.errors import UpstreamError
from metaalign.folders import whole_file
from metaalign.upstream.failures import short

_LIST_TIMEOUT_S = 20.0
_NO_LIST = (404, 405, 501)
"""Status codes of servers that have no list of models."""


@dataclass(frozen=True)
class Served:
    """What a server says of the model that it serves.

    Attributes:
        owner: Who made the server, by the model's card: `metaalign`, `vllm`, `openai`, ...
        identity: Answers belong to it; another one's are not used.
        fingerprint: Of the weights, where the server tells one.
        reached: Whether it answers now; else this is what it said before.
    """

    owner: str = ""
    identity: str = ""
    fingerprint: str = ""
    reached: bool = True

    @property
    def continues(self) -> bool:
        """Whether it goes on from the beginning of an answer."""
        return self.owner in ("metaalign", "vllm", "sglang")


def key_in_environment(config: TeacherConfig) -> str:
    """The key of an endpoint; servers that want none get a word for it."""
    return os.environ.get(config.key) or "none"


def look_up(name: str, config: TeacherConfig, remembered: Path) -> Served:
    """What the server says of the model. A server without a list of models says nothing.

    Args:
        name: The teacher's.
        remembered: Folder in which that is kept, for a job that finds all of its answers kept
            while the server is down.

    Raises:
        UpstreamError: it cannot be reached and never was, or refuses the key.
    """
    told = f"{config.base_url} {config.model} {config.version}"
    file = remembered / f"{hashlib.sha256(told.encode()).hexdigest()[:16]}.json"
    try:
        served = _asked(name, config)
    except _UnreachedError:
        if not file.exists():
            raise
        return replace(Served(**json.loads(file.read_text(encoding="utf-8"))), reached=False)
    remembered.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as unfinished:
        unfinished.write_text(json.dumps(asdict(served)), encoding="utf-8")
    return served


class _UnreachedError(UpstreamError):
    """No server answers."""


def _asked(name: str, config: TeacherConfig) -> Served:
    card: Any = None
    try:
        with OpenAI(
            base_url=config.base_url,
            api_key=key_in_environment(config),
            timeout=min(config.timeout_s, _LIST_TIMEOUT_S),
        ) as server:
            cards = server.models.list().data or []
        card = next((each for each in cards if each.id == config.model), None)
    except openai.APIConnectionError as error:
        raise _UnreachedError(f"{named(name, config)}: no server answers ({error})") from error
    except openai.APIStatusError as error:
        if error.status_code not in _NO_LIST:
            raise UpstreamError(refused_key(name, config, error)) from error
    except (ValueError, AttributeError, TypeError):
        pass  # It has a list of another shape.
    owner = str(getattr(card, "owned_by", "") or "")
    fingerprint = str(getattr(card, "fingerprint", "") or "") if owner == "metaalign" else ""
    identity = f"{fingerprint}{config.version}" or config.base_url.rstrip("/")
    return Served(owner=owner, identity=identity, fingerprint=fingerprint)


def named(name: str, config: TeacherConfig) -> str:
    """A teacher, as errors name it."""
    return f"teachers.{name}: {config.model} at {config.base_url}"


def refused_key(name: str, config: TeacherConfig, error: Exception) -> str:
    """What a server's refusal says, and which key it was asked with."""
    hint = ""
    if getattr(error, "status_code", None) in (401, 403):
        is_set = "" if os.environ.get(config.key) else ", which is not set"
        hint = f"; its key is read from ${config.key}{is_set}"
    return f"{named(name, config)}: {short(error)}{hint}"
