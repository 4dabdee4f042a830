"""The start checks, and one real Ray Serve endpoint asked by real clients."""

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import httpx
import pytest
import ray
from openai import BadRequestError, NotFoundError, OpenAI

from metaalign.config import ServeConfig
from metaalign.errors import ConfigError, ModelError, RequestError, TemplateError
from metaalign.generate.embedded import EmbeddedEngine, Sampling
from metaalign.serve.app import (
    base_url,
    check_serve,
    gpus_per_replica,
    run_serve,
    stop_serve,
)
from metaalign.template import Segment
from metaalign.upstream import ask
from tests.local_cluster import until
from tests.tiny_model import save_tiny_model

QUERY = "What is the capital of Peru?"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ServeConfig:
    storage = tmp_path_factory.mktemp("storage")
    save_tiny_model(storage / "model", context=200)
    return ServeConfig(storage=str(storage), name="tiny", port=free_port(), max_tokens=12)


@pytest.fixture(scope="module")
def url(config: ServeConfig, ray_cluster: None) -> Iterator[str]:  # noqa: ARG001
    """A running endpoint."""
    url = run_serve(config, block=False)
    yield url
    stop_serve()


@pytest.mark.usefixtures("no_ray")
def test_a_port_in_use_is_found_before_anything_starts(config: ServeConfig) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        taken = config.model_copy(update={"port": port})
        with pytest.raises(
            ConfigError, match=rf"port: cannot listen on 127\.0\.0\.1:{port} .* in use"
        ) as caught:
            run_serve(taken)
    assert not ray.is_initialized()
    free = int(str(caught.value).partition("port=")[2].partition(" ")[0])
    check_serve(config.model_copy(update={"port": free}))


def test_an_address_of_another_machine_is_refused(config: ServeConfig) -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1:\d+"):
        check_serve(config.model_copy(update={"host": "192.0.2.1"}))


def test_a_missing_model_is_found_before_anything_starts(config: ServeConfig) -> None:
    with pytest.raises(ModelError, match="the model folder does not exist"):
        run_serve(config.model_copy(update={"model": "nothing"}))


@pytest.mark.usefixtures("no_ray")
def test_a_changed_template_is_found_before_anything_starts(
    config: ServeConfig, tmp_path: Path
) -> None:
    folder = save_tiny_model(tmp_path / "model")
    file = folder / "template.json"
    template = json.loads(file.read_text())
    file.write_text(json.dumps({**template, "fingerprint": "another"}))
    with pytest.raises(TemplateError, match="another"):
        run_serve(config.model_copy(update={"model": str(folder)}))
    file.unlink()
    with pytest.raises(TemplateError, match="is missing"):
        run_serve(config.model_copy(update={"model": str(folder)}))
    assert not ray.is_initialized()


def test_the_url_of_every_address_is_one_that_this_machine_can_ask(config: ServeConfig) -> None:
    everywhere = config.model_copy(update={"host": "0.0.0.0", "port": 80})
    assert base_url(everywhere) == "http://127.0.0.1:80/v1"
    assert base_url(config.model_copy(update={"host": "::", "port": 80})) == "http://[::1]:80/v1"


def test_the_openai_client_gets_the_engines_answer(url: str, config: ServeConfig) -> None:
    engine = EmbeddedEngine(Path(config.storage, "model"), device="cpu")
    prompt = engine.template.prompt_ids(
        [
            Segment("system_info", "Answer in capitals."),
            Segment("user_info", "I am Ana."),
            Segment("user_query", QUERY),
        ]
    )
    wanted = engine.generate([prompt], Sampling(max_tokens=12))[0]
    with OpenAI(base_url=url, api_key="none") as client:
        completion = client.chat.completions.create(
            model="tiny",
            messages=[
                {"role": "system", "content": "Answer in capitals."},
                {"role": "user", "content": QUERY},
            ],
            extra_body={"user_info": "I am Ana."},
        )
        assert [model.id for model in client.models.list()] == ["tiny"]
    assert completion.choices[0].message.content == engine.template.decode(wanted.tokens)
    assert completion.usage is not None
    assert completion.usage.prompt_tokens == len(prompt)
    assert completion.usage.completion_tokens == len(wanted.tokens)


def test_the_openai_client_streams(url: str) -> None:
    with OpenAI(base_url=url, api_key="none") as client:
        messages = [{"role": "user", "content": QUERY}]
        whole = client.chat.completions.create(model="tiny", messages=messages)
        stream = client.chat.completions.create(
            model="tiny", messages=messages, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
    said = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(said) == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage


def test_the_openai_client_understands_the_errors(url: str) -> None:
    with OpenAI(base_url=url, api_key="none") as client:
        messages = [{"role": "user", "content": QUERY}]
        with pytest.raises(BadRequestError, match="did you mean user_info") as caught:
            client.chat.completions.create(
                model="tiny", messages=messages, extra_body={"user_inf": "x"}
            )
        assert caught.value.param == "user_inf"
        with pytest.raises(NotFoundError, match="unknown model 'gpt'") as missing:
            client.chat.completions.create(model="gpt", messages=messages)
        assert missing.value.code == "model_not_found"


def test_upstream_asks_under_a_meta_prompt(url: str, config: ServeConfig) -> None:
    def reach(**tiers: object) -> str:
        return ask(QUERY, base_url=url, model="tiny", max_tokens=12, **tiers)

    engine = EmbeddedEngine(Path(config.storage, "model"), device="cpu")
    segments = [Segment("system_info", "Be brief."), Segment("user_query", QUERY)]
    (wanted,) = engine.generate([engine.template.prompt_ids(segments)], Sampling(max_tokens=12))
    assert reach(system_info="Be brief.") == engine.template.decode(wanted.tokens)
    assert reach(preferences=[{"family": "capitals"}]) != reach()
    with pytest.raises(RequestError, match=r"unknown family 'rhymes'; known: .*capitals"):
        reach(preferences=[{"family": "rhymes"}])


def test_json_without_its_header_is_told_what_is_missing(url: str) -> None:
    body = b'{"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}'
    response = httpx.post(f"{url}/chat/completions", content=body)
    assert response.status_code == 400
    assert "Content-Type: application/json" in response.json()["error"]["message"]


def test_lone_surrogates_over_http_are_a_400(url: str) -> None:
    body = b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}'
    headers = {"Content-Type": "application/json"}
    response = httpx.post(f"{url}/chat/completions", content=body, headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "messages[0].content"


def test_requests_at_the_same_time_get_their_own_answers(url: str) -> None:
    queries = [f"What is {number}?" for number in range(8)]
    alone = [ask(query, base_url=url, model="tiny", max_tokens=12) for query in queries]
    together: dict[str, str] = {}

    def reach(query: str) -> None:
        together[query] = ask(query, base_url=url, model="tiny", max_tokens=12)

    threads = [Thread(target=reach, args=(query,)) for query in queries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[query] for query in queries] == alone
    assert len(set(alone)) > 1


@pytest.mark.usefixtures("url")
def test_a_second_server_on_the_same_cluster_is_refused(config: ServeConfig) -> None:
    with pytest.raises(ConfigError, match="already runs on this cluster"):
        run_serve(config.model_copy(update={"port": free_port()}), block=False)


@pytest.mark.usefixtures("url")
def test_more_replicas_than_the_cluster_holds_are_refused(config: ServeConfig) -> None:
    free = config.model_copy(update={"port": free_port()})
    with pytest.raises(ConfigError, match=r"replicas: 3 of 1 CPU each do not fit .* has 2;"):
        run_serve(free.model_copy(update={"replicas": 3}))
    with pytest.raises(ConfigError, match=r"replicas: 1 of 0\.5 GPU each do not fit"):
        run_serve(free.model_copy(update={"gpus_per_replica": 0.5}))


@pytest.mark.usefixtures("url")
def test_auto_serves_on_cpus_where_there_is_no_gpu(config: ServeConfig) -> None:
    assert config.gpus_per_replica == "auto"
    assert gpus_per_replica(config) == 0
    assert gpus_per_replica(config.model_copy(update={"gpus_per_replica": 0.25})) == 0.25


@pytest.mark.slow
def test_auto_takes_a_gpu_for_each_replica_where_the_cluster_has_one(config: ServeConfig) -> None:
    settings = config.model_copy(update={"port": free_port()}).model_dump_json()
    script = f"""
import logging, ray
logging.basicConfig(level=logging.INFO, format="%(message)s")
ray.init(num_cpus=2, num_gpus=1, include_dashboard=False)
from metaalign.config import ServeConfig
from metaalign.serve.app import check_cluster, run_serve
config = ServeConfig.model_validate_json({settings!r})
run_serve(config, block=False)
print("left", ray.available_resources().get("GPU", 0))
check_cluster(config.model_copy(update={{"replicas": 2}}))
"""
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False,
        timeout=180,
    )  # fmt: skip
    assert "gpus_per_replica auto: 1 GPU for each replica" in done.stderr
    assert "left 0" in done.stdout
    assert "replicas: 2 of 1 GPU each do not fit on the cluster, which has 1;" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_everything(
    config: ServeConfig, tmp_path: Path, number: signal.Signals
) -> None:
    settings = config.model_copy(update={"port": free_port()}).model_dump_json()
    script = (
        "from metaalign.config import ServeConfig; from metaalign.serve.app import run_serve; "
        f"run_serve(ServeConfig.model_validate_json({settings!r})); print('stopped')"
    )
    root = Path(__file__).resolve().parents[1]
    log = tmp_path / "log"
    with log.open("w") as output:
        server = subprocess.Popen([sys.executable, "-u", "-c", script], cwd=root, stdout=output)
    try:
        announced = r"serving 'tiny' at (http://\S+)/v1"
        found = until(lambda: re.search(announced, log.read_text()), 180, "the server")
        address = found.group(1)
        assert httpx.get(f"{address}/health").json()["status"] == "ok"
        server.send_signal(number)
        assert server.wait(60) == 0
    finally:
        server.kill()
    assert "stopped" in log.read_text()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/health")
