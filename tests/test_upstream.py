"""The client of OpenAI-compatible models, where no server answers. test_app asks a real one."""

import socket

import pytest

from metaalign.errors import RequestError
from metaalign.upstream import ask


def test_a_server_that_does_not_answer_is_named_with_the_remedy() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))  # bound, but nobody listens
        url = f"http://127.0.0.1:{holder.getsockname()[1]}/v1"
        with pytest.raises(RequestError, match=rf"{url}: no server answers .* start one"):
            ask("Hello?", base_url=url, model="tiny", timeout_s=2)
