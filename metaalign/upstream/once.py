"""Sends one query to an OpenAI-compatible model.

The API key is read from the environment variable OPENAI_API_KEY.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from openai import APIConnectionError, APIStatusError, OpenAI

from metaalign.errors import RequestError


def ask(
    query: str,
    *,
    base_url: str,
    model: str,
    system_info: str = "",
    user_info: str = "",
    preferences: Sequence[Mapping[str, Any]] = (),
    max_tokens: int | None = None,
    seed: int | None = None,
    timeout_s: float = 60.0,
) -> str:
    """The answer to one query under a meta-prompt, decoded greedily.

    Args:
        base_url: For example http://127.0.0.1:8000/v1.
        preferences: Each {"family": ..., "parameter": ...}.

    Raises:
        RequestError: the server cannot be reached, or refuses the request.
    """
    extra = {
        "system_info": system_info,
        "user_info": user_info,
        "preferences": list(preferences),
        "max_tokens": max_tokens,
        "seed": seed,
    }
    key = os.environ.get("OPENAI_API_KEY", "none")
    try:
        with OpenAI(base_url=base_url, api_key=key, timeout=timeout_s) as client:
            completion = client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": query}],
                temperature=0.0,
                extra_body={k: value for k, value in extra.items() if value not in ("", [], None)},
            )
    except APIConnectionError as error:
        raise RequestError(
            f"{base_url}: no server answers ({error}); start one with the serve job, or correct "
            "the address"
        ) from error
    except APIStatusError as error:
        raise RequestError(f"{base_url}: {error.message}") from error
    return completion.choices[0].message.content or ""
