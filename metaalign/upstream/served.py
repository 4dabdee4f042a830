"""Looks up how a server describes its model before the first request, and caches the
description."""

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
    """A server's description of the model that it serves.

    Attributes:
        owner: `owned_by` in the server's model list: `metaalign`, `vllm`, `openai`, ...
        identity: Part of every answer's key: answers under another identity are not reused.
        fingerprint: Of the weights and template. Empty unless the server is metaalign's.
        reached: Whether the server answers now. If not, this is the cached description.
    """

    owner: str = ""
    identity: str = ""
    fingerprint: str = ""
    reached: bool = True

    @property
    def continues(self) -> bool:
        """Whether the server supports continue_final_message."""
        return self.owner in ("metaalign", "vllm", "sglang")


def key_in_environment(config: TeacherConfig) -> str:
    """The endpoint's API key, or "none" if the variable is not set: some servers need no key."""
    return os.environ.get(config.key) or "none"


def look_up(name: str, config: TeacherConfig, remembered: Path) -> Served:
    """The server's description of the model, with empty fields if it has no model list.

    Args:
        name: The teacher's name in the settings.
        remembered: Folder that caches the description, so that a job can run from stored answers
            while the server is down.

    Raises:
        UpstreamError: the server cannot be reached and nothing is cached, or it refuses the key.
    """
    model = f"{config.base_url} {config.model} {config.version}"
    file = remembered / f"{hashlib.sha256(model.encode()).hexdigest()[:16]}.json"
    try:
        served = _fetch_description(name, config)
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


def _fetch_description(name: str, config: TeacherConfig) -> Served:
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
        pass  # Its model list has another shape.
    owner = str(getattr(card, "owned_by", "") or "")
    fingerprint = str(getattr(card, "fingerprint", "") or "") if owner == "metaalign" else ""
    identity = f"{fingerprint}{config.version}" or config.base_url.rstrip("/")
    return Served(owner=owner, identity=identity, fingerprint=fingerprint)


def named(name: str, config: TeacherConfig) -> str:
    """The teacher's name, model and address, for error messages."""
    return f"teachers.{name}: {config.model} at {config.base_url}"


def refused_key(name: str, config: TeacherConfig, error: Exception) -> str:
    """The message for a refused request; for status 401 or 403 it names the API key's variable."""
    hint = ""
    if getattr(error, "status_code", None) in (401, 403):
        is_set = "" if os.environ.get(config.key) else ", which is not set"
        hint = f"; its key is read from ${config.key}{is_set}"
    return f"{named(name, config)}: {short(error)}{hint}"
