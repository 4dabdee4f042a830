"""The client of OpenAI-compatible models, against a server that fails on purpose."""

import asyncio
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metaalign.config.teacher import TeacherConfig
from metaalign.errors import RequestError, UpstreamError
from metaalign.examples import Turn
from metaalign.upstream import (
    AnswerError,
    Answers,
    Client,
    Kept,
    Reply,
    Request,
    ask,
    look_up,
)
from tests.scripted_server import Scripted, completion, served

BUSY = {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}


def request(text: str = "Hello?", **fields: Any) -> Request:
    return Request(turns=(Turn("user", text),), **fields)


class Asking:
    """A client of a server in a folder of its own; every call is an event loop of its own."""

    def __init__(self, server: Scripted, folder: Path, **settings: Any) -> None:
        config = TeacherConfig(base_url=server.url, model="m", **settings)
        answers, failed = Answers(folder / "answers"), Answers(folder / "failed")
        self.served = look_up("big", config, folder / "served")
        self.client = Client("big", config, self.served, key="k", answers=answers, failed=failed)

    def __call__(self, *requests: Request) -> list[Reply | BaseException]:
        async def all_of() -> list[Reply | BaseException]:
            async with self.client.opened() as client:
                asked = (client.answer(each) for each in requests)
                return await asyncio.gather(*asked, return_exceptions=True)

        return asyncio.run(all_of())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of hundredths of a second."""
    monkeypatch.setattr("metaalign.upstream.failures.FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr("metaalign.upstream.failures.LONGEST_PAUSE_S", 0.02)


def test_a_server_that_does_not_answer_is_named_with_the_remedy(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))  # bound, but nobody listens
        url = f"http://127.0.0.1:{holder.getsockname()[1]}/v1"
        with pytest.raises(RequestError, match=rf"{url}: no server answers .* start one"):
            ask("Hello?", base_url=url, model="tiny", timeout_s=2)
        config = TeacherConfig(base_url=url, model="m", timeout_s=2)
        with pytest.raises(UpstreamError, match=rf"teachers\.big: m at {url}: no server answers"):
            look_up("big", config, tmp_path)


def test_an_answer_is_paid_for_once_and_found_by_who_only_looks(tmp_path: Path) -> None:
    with served(lambda body, _: f"to {body['messages'][-1]['content']}") as server:
        asking = Asking(server, tmp_path, input_price=100, output_price=1000)
        equal = asking(request("A"), request("A"), request("B"))
        assert [each.text for each in equal if isinstance(each, Reply)] == ["to A", "to A", "to B"]
        assert len(server.asked) == 2  # equal ones that are under way at once, too
        spending = asking.client.spending
        assert (spending.asked, spending.kept, spending.failed) == (2, 1, 0)
        assert (spending.prompt_tokens, spending.completion_tokens) == (20, 6)
        assert spending.cost == pytest.approx((20 * 100 + 6 * 1000) / 1e6)
        again = Asking(server, tmp_path)
        assert again(request("A"))[0] == equal[0]
        assert len(server.asked) == 2
        assert again.client.spending.cost == 0
        kept = Kept(
            {"big": TeacherConfig(base_url=server.url, model="m")},
            {"big": again.served},
            tmp_path / "answers",
            tmp_path / "failed",
        )
        assert asyncio.run(kept.answer("big", request("B"))) == equal[2]
        with pytest.raises(AnswerError, match=r"teachers\.big was not asked"):
            asyncio.run(kept.answer("big", request("C")))


@pytest.mark.parametrize(
    ("first", "times"),
    [
        ((429, {"Retry-After": "0"}, BUSY), 3),
        ((500, {}, {"error": {"message": "oh"}}), 2),
        ((503, {}, b"<html>"), 1),
        ((408, {}, {}), 1),
    ],
)
def test_failures_that_pass_are_tried_again(tmp_path: Path, first: Any, times: int) -> None:
    with served(lambda _, number: first if number < times else "at last") as server:
        asking = Asking(server, tmp_path)
        (reply,) = asking(request())
        assert isinstance(reply, Reply), reply
        assert reply.text == "at last"
        assert len(server.asked) == times + 1
        assert asking.client.spending.again == times


def test_a_pause_that_the_server_asks_for_is_kept(tmp_path: Path) -> None:
    busy = (429, {"Retry-After": "0.5"}, BUSY)
    with served(lambda _, number: "done" if number else busy) as server:
        asking = Asking(server, tmp_path)
        started = time.monotonic()
        asking(request())
        assert time.monotonic() - started > 0.5


@pytest.mark.parametrize(
    ("told", "message", "requests"),
    [
        ((500, {}, {"error": {"message": "oh no"}}), "oh no", 3),
        ((400, {}, {"error": {"message": "too long"}}), "too long", 1),
        ((200, {}, {"choices": []}), "expected a chat completion", 1),
        ((200, {"Content-Type": "text/html"}, b"<p>Hello</p>"), "expected a chat comp", 1),
        ((200, {}, b'{"choices": ['), "big: m at", 1),
        ((200, {}, {"choices": [{"message": None}]}), "expected a chat completion", 1),
        ((200, {}, {"choices": {}}), "expected a chat completion", 1),
        (
            (200, {}, {**completion("x"), "usage": {"prompt_tokens": "many"}}),
            "expected a chat completion",
            1,
        ),
    ],
)
def test_a_request_without_an_answer_is_noted_and_asked_once(
    tmp_path: Path, told: Any, message: str, requests: int
) -> None:
    with served(lambda _, __: told) as server:
        asking = Asking(server, tmp_path, max_retries=2)
        first, second = asking(request(), request())
        for each in (first, second):
            assert isinstance(each, AnswerError)
            assert message in str(each)
        assert len(server.asked) == requests
        assert asking.client.spending.failed == 1
    with served(lambda _, __: "fine now") as server:
        other = Asking(server, tmp_path / "later")
        assert [type(each) for each in other(request())] == [Reply]


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ((401, {}, {"error": {"message": "bad key"}}), r"bad key; its key is read from \$NO_KEY"),
        ((404, {}, {"error": {"message": "no such model"}}), "no such model"),
        ((402, {}, {"error": {"message": "pay"}}), "pay: no credit is left"),
        (
            (429, {}, {"error": {"message": "quota", "code": "insufficient_quota"}}),
            "quota: no credit is left",
        ),
    ],
)
def test_a_server_that_will_answer_nothing_ends_it_at_once(
    tmp_path: Path, told: Any, message: str
) -> None:
    with served(lambda _, __: told) as server:
        asking = Asking(server, tmp_path, key="NO_KEY")
        (error,) = asking(request())
        assert isinstance(error, UpstreamError)
        assert not isinstance(error, AnswerError)
        with pytest.raises(UpstreamError, match=message):
            raise error
        assert len(server.asked) == 1


def test_failures_alone_for_too_long_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third request in a row; one answer between them, and they are counted anew."""
    monkeypatch.setattr("metaalign.upstream.client._PATIENCE_S", 0.0)
    broken = (500, {}, {})
    told = [broken, broken, "fine", broken, broken, broken]
    with served(lambda _, number: told[number]) as server:
        asking = Asking(server, tmp_path, max_retries=0, concurrency=1)
        found = asking(*(request(f"{number}") for number in range(6)))
        assert [type(each) for each in found] == [
            AnswerError, AnswerError, Reply, AnswerError, AnswerError, UpstreamError
        ]  # fmt: skip
        assert "every request has failed" in str(found[-1])


def test_failures_alone_for_a_short_while_end_nothing(tmp_path: Path) -> None:
    with served(lambda _, __: (500, {}, {})) as server:
        asking = Asking(server, tmp_path, max_retries=0, concurrency=1)
        found = asking(*(request(f"{number}") for number in range(6)))
        assert {type(each) for each in found} == {AnswerError}


def test_cost_stops_at_its_limit_and_goes_on_in_a_later_job(tmp_path: Path) -> None:
    with served(lambda body, _: body["messages"][-1]["content"]) as server:
        prices = {"input_price": 1e5, "max_cost": 2.5, "concurrency": 1}  # 1 for each answer
        requests = [request(f"{number}") for number in range(6)]
        told = Asking(server, tmp_path, **prices)(*requests)
        assert sum(isinstance(each, Reply) for each in told) == 3
        errors = [str(each) for each in told if isinstance(each, UpstreamError)]
        assert all("3 is spent, and max_cost is 2.5" in each for each in errors)
        again = Asking(server, tmp_path, **prices)(*requests)
        assert all(isinstance(each, Reply) for each in again)
        assert len(server.asked) == 6


def test_a_limit_of_cost_needs_a_server_that_tells_it(tmp_path: Path) -> None:
    told = {key: value for key, value in completion("Hi").items() if key != "usage"}
    with served(lambda _, __: told) as server:
        (error,) = Asking(server, tmp_path, max_cost=1, input_price=1)(request())
        assert "the server reports no token usage" in str(error)
        (reply,) = Asking(server, tmp_path)(request())
        assert isinstance(reply, Reply)
        assert len(server.asked) == 1  # it was paid for, and is kept


def test_no_more_are_under_way_than_allowed_and_no_fewer(tmp_path: Path) -> None:
    def slow(_: Any, __: int) -> str:
        time.sleep(0.1)
        return "x"

    with served(slow) as server:
        Asking(server, tmp_path, concurrency=4)(*(request(f"{n}") for n in range(16)))
        assert server.most == 4


def _seconds(server: Scripted, folder: Path, count: int, **settings: Any) -> float:
    asking, started = Asking(server, folder, **settings), time.monotonic()
    asking(*(request(f"{number}") for number in range(count)))
    return time.monotonic() - started


def test_requests_are_spaced_evenly(tmp_path: Path) -> None:
    with served(lambda _, __: "x") as server:
        assert 0.9 < _seconds(server, tmp_path, 11, requests_per_minute=600) < 3


def test_tokens_are_limited(tmp_path: Path) -> None:
    """The first may take all of a minute's 40; then 13 each, one in 20 seconds."""
    with served(lambda _, __: "x") as server:
        asking = Asking(server, tmp_path, tokens_per_minute=40, concurrency=1)

        async def some() -> int:
            async with asking.client.opened() as client:
                asked = [asyncio.create_task(client.answer(request(f"{n}"))) for n in range(6)]
                await asyncio.sleep(1.5)
                for each in asked:
                    each.cancel()
                return len(server.asked)

        assert asyncio.run(some()) == 1
        assert len(list((tmp_path / "answers").rglob("*.json"))) == 1


def card(**fields: str) -> list[dict[str, Any]]:
    return [{"id": "m", "object": "model", "created": 0, **fields}]


def test_another_model_in_its_place_ends_it(tmp_path: Path) -> None:
    cards = card(owned_by="metaalign", fingerprint="f1")
    told = {**completion("Hi"), "system_fingerprint": "f2"}
    with served(lambda _, __: told, cards=cards) as server:
        (error,) = Asking(server, tmp_path)(request())
        assert "the server now serves another model" in str(error)


def test_a_key_goes_to_the_server_and_nowhere_else(tmp_path: Path) -> None:
    with served(lambda _, __: "x") as server:
        Asking(server, tmp_path)(request())
        assert server.keys == ["Bearer k"]
    kept = [file.read_text() for file in (tmp_path / "answers").rglob("*.json")]
    assert [json.loads(each) for each in kept] == [
        {
            "text": "x",
            "finish_reason": "stop",
            "prompt_tokens": 10,
            "completion_tokens": 3,
            "limit": 1024,
        }
    ]


def _torn(file: Path) -> None:
    file.write_text('{"text": "Li')


def _emptied(file: Path) -> None:
    file.write_text("")


@pytest.mark.parametrize("spoil", [_torn, _emptied])
def test_a_spoilt_answer_is_asked_for_again(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    with served(lambda _, number: f"answer {number}") as server:
        Asking(server, tmp_path)(request())
        (file,) = (tmp_path / "answers").rglob("*.json")
        spoil(file)
        (reply,) = Asking(server, tmp_path)(request())
        assert isinstance(reply, Reply)
        assert reply.text == "answer 1"
        (again,) = Asking(server, tmp_path)(request())
        assert again == reply


def test_an_answer_that_was_cut_off_is_asked_for_again_where_it_may_be_longer(
    tmp_path: Path,
) -> None:
    def script(body: dict[str, Any], _: int) -> dict[str, Any]:
        short = body["max_tokens"] < 50
        return completion("Li" if short else "Lima.", finish_reason="length" if short else "stop")

    with served(script) as server:
        for limit, text, asked in ((9, "Li", 1), (9, "Li", 1), (90, "Lima.", 2), (20, "Lima.", 2)):
            (reply,) = Asking(server, tmp_path)(request(max_tokens=limit))
            assert isinstance(reply, Reply)
            assert (reply.text, len(server.asked)) == (text, asked)


def test_half_a_character_of_a_model_stops_nothing(tmp_path: Path) -> None:
    with served(lambda _, __: completion("Lima \ud83d.")) as server:
        (reply,) = Asking(server, tmp_path)(request())
        assert isinstance(reply, Reply)
        assert reply.text == "Lima ?."
        assert Asking(server, tmp_path)(request()) == [reply]
