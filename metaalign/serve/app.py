"""The endpoint on Ray Serve, and the job that runs it.

`run_serve` checks the configuration before anything starts, then serves until it receives SIGINT or
SIGTERM.
"""

import json
import logging
import signal
import socket
import threading
from contextlib import ExitStack

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.schema import LoggingConfig

from metaalign.config import ServeConfig, resolve
from metaalign.errors import ConfigError
from metaalign.generate.embedded import EmbeddedEngine, check_folder
from metaalign.serve.endpoint import create_app
from metaalign.template import Template

APP_NAME = "metaalign"

logger = logging.getLogger(__name__)


def build_app(config: ServeConfig) -> Application:
    """The endpoint as a Ray Serve application; every replica loads the model. Requires a running
    Ray."""
    settings = config.model_dump(mode="json")

    def start() -> FastAPI:
        config = ServeConfig.model_validate(settings)
        folder = resolve(config.storage, config.model)
        return create_app(EmbeddedEngine(folder, batch_size=config.max_batch_size), config)

    deployment = serve.deployment(
        serve.ingress(start)(),
        name="chat",
        num_replicas=config.replicas,
        max_ongoing_requests=4 * config.max_batch_size,
        ray_actor_options={"num_gpus": gpus_per_replica(config)},
        logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
    )
    return deployment.bind()


def check_serve(config: ServeConfig) -> None:
    """Check the model folder and the address, before anything starts.

    Raises:
        ModelError: the folder holds no model.
        TemplateError: its tokenizer is not the one that the model was trained with.
        ConfigError: the server cannot listen on the address.
    """
    Template.verify(check_folder(resolve(config.storage, config.model)))
    check_port(config)


def check_port(config: ServeConfig) -> None:
    """Check that the server can listen on the address.

    Raises:
        ConfigError: it cannot; the message names a free port.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        socket.create_server((config.host, config.port), family=family).close()
    except OSError as error:
        with socket.create_server(("", 0)) as free:
            port = free.getsockname()[1]
        raise ConfigError(
            f"port: cannot listen on {config.host}:{config.port} ({error.strerror}). Stop the "
            f"process that uses it (`ss -ltnp 'sport = :{config.port}'` shows which), or set "
            f"another host or port: port={port} is free"
        ) from error


def gpus_per_replica(config: ServeConfig) -> float:
    """The setting as a number: auto is 1 if the cluster has a GPU now, else 0. Requires a running
    Ray."""
    if config.gpus_per_replica != "auto":
        return config.gpus_per_replica
    return 1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0


def check_cluster(config: ServeConfig) -> None:
    """Check that Ray Serve is not running yet and that the replicas fit on the cluster.

    Ray Serve would wait without end for resources that the cluster does not have.

    Raises:
        ConfigError: names the setting to change.
    """
    cluster, gpus = ray.cluster_resources(), gpus_per_replica(config)
    for kind, each, also in (("CPU", 1.0, ""), ("GPU", gpus, " or gpus_per_replica")):
        if config.replicas * each > cluster.get(kind, 0):
            raise ConfigError(
                f"replicas: {config.replicas} of {each:g} {kind} each do not fit on the "
                f"cluster, which has {cluster.get(kind, 0):g}; lower replicas{also}, or add nodes"
            )
    if serve.status().proxies:
        raise ConfigError(
            "Ray Serve already runs on this cluster, and its address cannot change while it runs: "
            "stop it (`serve shutdown`), or serve from another cluster"
        )


def run_serve(config: ServeConfig, block: bool = True) -> str:
    """Serve the model.

    Args:
        block: Return only after SIGINT or SIGTERM, once everything has stopped. False returns as
            soon as the endpoint answers requests; `stop_serve` stops it.

    Returns:
        The base URL for OpenAI's clients, such as http://127.0.0.1:8000/v1.

    Raises:
        ModelError, TemplateError, ConfigError: see `check_serve`. ConfigError also if the cluster
            is too small or already runs Ray Serve.
    """
    check_serve(config)
    if not ray.is_initialized():
        ray.init()
    check_cluster(config)
    gpus = gpus_per_replica(config)
    place = f"{gpus:g} GPU for each replica" if gpus else "replicas run on CPUs"
    logger.info("gpus_per_replica %s: %s", config.gpus_per_replica, place)
    with ExitStack() as cleanup:
        cleanup.callback(stop_serve)
        serve.start(http_options={"host": config.host, "port": config.port})
        serve.run(build_app(config), name=APP_NAME, route_prefix="/")
        if block:
            print(_greeting(config), flush=True)
            _wait_for_signal()
        else:
            cleanup.pop_all()
    return base_url(config)


def stop_serve() -> None:
    """Stop every replica and the HTTP endpoint."""
    serve.shutdown()


def base_url(config: ServeConfig) -> str:
    """The endpoint's URL for OpenAI's clients on this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.host, config.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{config.port}/v1"


def _wait_for_signal() -> None:
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    # A wait without a timeout keeps Python from running the handlers on some platforms.
    while not stopped.wait(1.0):
        pass


def _greeting(config: ServeConfig) -> str:
    body = {
        "model": config.name,
        "messages": [{"role": "user", "content": "What is the capital of Peru?"}],
        "preferences": [{"family": "capitals"}],
    }
    return (
        f"serving {config.name!r} at {base_url(config)}; stop with Ctrl-C or `ray job stop`\n"
        "no keys are configured: anyone who can reach the port may set the System Info\n"
        f"try: curl -s {base_url(config)}/chat/completions -H 'Content-Type: application/json' "
        f"-d '{json.dumps(body)}'"
    )
