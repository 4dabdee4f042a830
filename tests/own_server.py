"""metaalign's own server over HTTP, in a thread of this process."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from metaalign.config import ServeConfig
from metaalign.generate.embedded import EmbeddedEngine
from metaalign.serve.endpoint import create_app
from tests.local_cluster import until


@contextmanager
def own_server(folder: Path, *, name: str = "metaalign", max_tokens: int = 48) -> Iterator[str]:
    """The address of a server of the model in a folder."""
    config = ServeConfig(storage=str(folder.parent), name=name, max_tokens=max_tokens)
    app = create_app(EmbeddedEngine(folder, device="cpu"), config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        until(lambda: server.started, seconds=30, what="the server")
        try:
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.should_exit = True
            thread.join(timeout=30)
