"""The endpoint over a real engine, through a real HTTP client."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metaalign.config import ServeConfig
from metaalign.generate.embedded import EmbeddedEngine, Sampling
from metaalign.serve.endpoint import _ArrivingText, create_app
from metaalign.template import CONTROL_TOKENS, Segment
from tests.tiny_model import save_tiny_model

QUERY = {"role": "user", "content": "What is the capital of Peru?"}
URL = "/v1/chat/completions"


class RecordingEngine(EmbeddedEngine):
    """The real engine; it remembers the prompts that reached it."""

    prompts: list[list[int]]

    def generate(self, prompts, sampling, listener=None):
        self.prompts += prompts
        return super().generate(prompts, sampling, listener)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> RecordingEngine:
    folder = save_tiny_model(tmp_path_factory.mktemp("model"), context=200)
    engine = RecordingEngine(folder, device="cpu")
    engine.prompts = []
    return engine


Send = Callable[..., httpx.Response]


@pytest.fixture(scope="module")
def send(engine: RecordingEngine) -> Send:
    """Sends one request to the app: `send(method, url, **httpx arguments)`."""
    config = ServeConfig(storage="/nowhere", name="tiny", max_tokens=6, batch_wait_s=0)

    def send(method: str, url: str, **arguments: Any) -> httpx.Response:
        async def once() -> httpx.Response:
            transport = httpx.ASGITransport(create_app(engine, config), raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, url, **arguments)

        return asyncio.run(once())

    return send


def ask(send: Send, **fields: Any) -> httpx.Response:
    return send("POST", URL, json={"model": "tiny", "messages": [QUERY], **fields})


def events(response: httpx.Response) -> list[Any]:
    """The events of a stream, parsed; [DONE] as it stands."""
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    datas = [line.removeprefix("data: ") for line in lines]
    return [data if data == "[DONE]" else json.loads(data) for data in datas]


def test_an_answer_is_what_the_engine_generates_and_usage_is_exact(
    send: Send, engine: RecordingEngine
) -> None:
    template = engine.template
    prompt = template.prompt_ids(
        [
            Segment("system_info", "Answer in capitals."),
            Segment("user_info", "I am Ana."),
            Segment("user_query", QUERY["content"]),
        ]
    )
    answer = engine.generate([prompt], Sampling(max_tokens=6))[0]
    response = ask(send, system_info="Answer in capitals.", user_info="I am Ana.")
    assert response.status_code == 200
    body = response.json()
    assert body["object"] == "chat.completion"
    assert body["model"] == "tiny"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": template.decode(answer.tokens)},
            "finish_reason": answer.finish_reason,
            "logprobs": None,
        }
    ]
    assert body["usage"] == {
        "prompt_tokens": len(prompt),
        "completion_tokens": len(answer.tokens),
        "total_tokens": len(prompt) + len(answer.tokens),
    }


def test_an_answer_goes_on_from_its_beginning(send: Send, engine: RecordingEngine) -> None:
    template, head = engine.template, "The capital"
    opened = template.prompt_ids([Segment("user_query", QUERY["content"])])
    prompt = [*opened, *template.encode_texts([head])[0]]
    wanted = engine.generate([prompt], Sampling(max_tokens=6))[0]
    messages = [QUERY, {"role": "assistant", "content": head}]
    fields = {"continue_final_message": True, "add_generation_prompt": False}
    body = ask(send, messages=messages, **fields).json()
    assert body["choices"][0]["message"]["content"] == template.decode(wanted.tokens)
    assert body["usage"]["prompt_tokens"] == len(prompt)


def test_a_stream_says_the_same_as_the_whole_answer(send: Send) -> None:
    whole = ask(send, max_tokens=30).json()
    response = ask(send, max_tokens=30, stream=True, stream_options={"include_usage": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, last, done = events(response)
    assert done == "[DONE]"
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    said = "".join(choice["delta"].get("content", "") for choice in choices)
    assert said == whole["choices"][0]["message"]["content"]
    reasons = [choice["finish_reason"] for choice in choices]
    assert reasons == [None] * (len(reasons) - 1) + [whole["choices"][0]["finish_reason"]]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}


def test_a_stream_without_options_carries_no_usage(send: Send) -> None:
    *chunks, done = events(ask(send, stream=True))
    assert done == "[DONE]"
    assert all("usage" not in chunk for chunk in chunks)


def test_a_character_waits_until_all_its_bytes_have_come(engine: RecordingEngine) -> None:
    ids = engine.template.encode_texts(["é日🙂"])[0]
    assert len(ids) > 3
    text = _ArrivingText(engine.template)
    news = [text.take([id]) for id in ids]
    assert [piece for piece in news if piece] == ["é", "日", "🙂"]


def test_another_model_is_not_found(send: Send) -> None:
    response = ask(send, model="gpt")
    assert response.status_code == 404
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "'tiny'" in error["message"]


def test_a_query_longer_than_the_context_is_refused_with_counts(send: Send) -> None:
    long = [{"role": "user", "content": "\x00" * 300}]
    response = ask(send, messages=long, user_info="I am Ana.")
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "user_query 301" in error["message"]
    assert "context is 200" in error["message"]


def test_an_unknown_field_is_refused_by_name(send: Send) -> None:
    response = ask(send, temprature=0.1)
    assert response.status_code == 400
    assert response.json() == {
        "error": {
            "message": "temprature: unknown field (did you mean temperature?)",
            "type": "invalid_request_error",
            "param": "temprature",
            "code": None,
        }
    }


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'"text"',
        b"[" * 100_000,
        b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"\\ud800": 1}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "seed": 1'
        + b"0" * 5000
        + b"}",
        b'{"model": "\\udfff", "messages": [{"role": "user", "content": "x"}]}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "x", "\\ud800": 1}]}',
        b'{"model": "tiny", "temperature": NaN, "messages": [{"role": "user", "content": "x"}]}',
    ],
)
def test_a_body_that_is_no_request_is_a_400_in_openais_shape(send: Send, content: bytes) -> None:
    response = send("POST", URL, content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 400, response.text
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_other_addresses_answer_in_openais_shape(send: Send) -> None:
    assert send("GET", "/v1/nothing").json()["error"]["message"] == "Not Found"
    assert send("GET", "/v1/nothing").status_code == 404
    assert send("GET", URL).status_code == 405
    assert send("GET", URL).json()["error"]["type"] == "invalid_request_error"


def test_the_model_is_listed_and_healthy(send: Send, engine: RecordingEngine) -> None:
    listed = send("GET", "/v1/models").json()
    assert [card["id"] for card in listed["data"]] == ["tiny"]
    assert [card["fingerprint"] for card in listed["data"]] == [engine.fingerprint]
    assert listed["data"][0]["max_model_len"] == 200
    assert send("GET", "/v1/models/tiny").json()["id"] == "tiny"
    assert send("GET", "/v1/models/gpt").status_code == 404
    health = send("GET", "/health").json()
    assert health == {"status": "ok", "model": "tiny", "template": engine.template.fingerprint}


NASTY = st.one_of(
    st.text(max_size=40),
    st.lists(
        st.one_of(
            st.sampled_from([*CONTROL_TOKENS.values(), "<|end|>", "<|padding|>", "<|", "|>", "\0"]),
            st.text(max_size=8),
        ),
        max_size=6,
    ).map("".join),
)


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(NASTY, min_size=6, max_size=6), name=NASTY)
def test_no_text_over_http_makes_a_control_token(
    send: Send, engine: RecordingEngine, texts: list[str], name: str
) -> None:
    """Every control token of a prompt is one that its structure calls for, whatever is typed."""
    system, user, first, answer, later, query = texts
    engine.prompts.clear()
    body = {
        "model": "tiny",
        "system_info": system,
        "user_info": user,
        "messages": [
            {"role": "user", "content": first},
            {"role": "assistant", "content": answer},
            {"role": "user", "content": query, "user_info": later},
        ],
        "preferences": [{"family": "greeting", "parameter": "x" + name}],
        "max_tokens": 1,
    }
    content = json.dumps(body).encode()
    response = send("POST", URL, content=content, headers={"Content-Type": "application/json"})
    if response.status_code == 400:
        assert response.json()["error"]["type"] == "invalid_request_error"
        assert not engine.prompts
        return
    assert response.status_code == 200, response.text
    template = engine.template
    control = {id: tier for tier, id in template.control_ids.items()}
    tiers = ["system_info"] * bool(system) + ["user_info", "user_query", "response"]
    tiers += ["user_info"] * bool(later) + ["user_query", "response"]
    (prompt,) = engine.prompts
    assert [control[id] for id in prompt if id in control] == tiers
    assert prompt.count(template.eos_id) == 1  # closes the earlier response
    assert template.tokenizer.pad_token_id not in prompt


@pytest.mark.parametrize("stream", [False, True])
def test_a_failing_engine_is_an_error_that_tells_nothing_of_the_inside(
    tmp_path: Path, stream: bool
) -> None:
    engine = EmbeddedEngine(save_tiny_model(tmp_path), device="cpu")
    engine._model.model.norm.weight = torch.nn.Parameter(torch.ones(7))  # of 32: cannot be run
    config = ServeConfig(storage="/nowhere", name="tiny")
    body = {"model": "tiny", "messages": [QUERY], "stream": stream}

    async def once() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(engine, config), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post(URL, json=body)

    response = asyncio.run(once())
    assert "size of tensor" not in response.text
    if stream:
        assert events(response)[-2]["error"]["type"] == "server_error"
        assert events(response)[-1] == "[DONE]"
    else:
        assert response.status_code == 500
        assert response.json()["error"]["type"] == "server_error"
