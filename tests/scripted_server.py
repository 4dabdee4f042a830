"""An OpenAI-compatible server that answers as a test says, on a port of this machine."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Scripted:
    """What a server does, and what it was asked.

    Attributes:
        script: Takes a request's body and its number, from 0; gives a status, headers and a body,
            or a text that is the answer.
        cards: The models that it lists; None answers 404.
        most: Most requests that were under way at once.
    """

    script: Callable[[dict[str, Any], int], Any]
    cards: list[dict[str, Any]] | None = None
    list_status: int = 200
    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    most: int = 0
    under_way: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


def completion(text: str, *, finish_reason: str = "stop", tokens: int = 3) -> dict[str, Any]:
    """A whole completion, as servers send it."""
    message = {"role": "assistant", "content": text}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 10, "completion_tokens": tokens, "total_tokens": 10 + tokens},
    }


@contextmanager
def served(script: Callable[[dict[str, Any], int], Any], **settings: Any) -> Iterator[Scripted]:
    """A running server."""
    state = Scripted(script, **settings)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            cards = {"object": "list", "data": state.cards or []}
            self._send(state.list_status if state.cards is not None else 404, {}, cards)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                number = len(state.asked)
                state.asked.append(body)
                state.keys.append(self.headers["Authorization"])
                state.under_way += 1
                state.most = max(state.most, state.under_way)
            told = state.script(body, number)
            with state.lock:
                state.under_way -= 1
            status, headers, sent = told if isinstance(told, tuple) else (200, {}, told)
            self._send(status, headers, completion(sent) if isinstance(sent, str) else sent)

        def _send(self, status: int, headers: dict[str, str], body: Any) -> None:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128  # of 5, a client of 20 connections loses some on a busy machine

    server = Server(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
