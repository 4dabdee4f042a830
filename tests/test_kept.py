"""Answers that several ask for at once, under one limit and another."""

import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from metaalign.config.teacher import TeacherConfig
from metaalign.upstream import AnswerError, Answers, Kept, Reply, key_of
from tests.scripted_server import completion, served
from tests.test_upstream import Asking, request


def _cut(body: dict[str, Any], most: int) -> dict[str, Any]:
    limit = body.get("max_tokens") or body["max_completion_tokens"]
    return completion("Li", finish_reason="length") if limit < most else completion("Lima.")


def test_a_late_answer_does_not_take_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    """Another job keeps one while the request is under way; both read that one."""
    answers = Answers(tmp_path / "answers")

    def script(_: dict[str, Any], __: int) -> str:
        answers.keep(key.name, {"text": "first", "finish_reason": "stop"})
        return "late"

    with served(script) as server:
        asking = Asking(server, tmp_path)
        config = TeacherConfig(base_url=server.url, model="m")
        key = key_of(request(), config, asking.served)
        (reply,) = asking(request())
        assert isinstance(reply, Reply)
        assert reply.text == "first"
        kept = Kept({"big": config}, {"big": asking.served}, tmp_path / "answers", tmp_path)
        assert asyncio.run(kept.answer("big", request())) == reply


def test_a_shorter_answer_never_takes_the_place_of_a_whole_one(tmp_path: Path) -> None:
    with served(lambda body, _: _cut(body, 50)) as server:
        for limit in (90, 9):
            (reply,) = Asking(server, tmp_path)(request(max_tokens=limit))
            assert isinstance(reply, Reply)
            assert (reply.text, len(server.asked)) == ("Lima.", 1)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_limit_among_the_extra_fields_is_one(tmp_path: Path, name: str) -> None:
    with served(lambda body, _: _cut(body, 50)) as server:
        for limit, text, asked in (
            (9, "Li", 1),
            (90, "Lima.", 2),
            (9, "Lima.", 2),
            (99, "Lima.", 2),
        ):
            extra = {"max_tokens": None, name: limit}
            (reply,) = Asking(server, tmp_path, extra=extra)(request())
            assert isinstance(reply, Reply)
            assert (reply.text, len(server.asked)) == (text, asked)


def test_a_failure_is_that_of_its_limit(tmp_path: Path) -> None:
    refused = (400, {}, {"error": {"message": "max_tokens is too large"}})
    with served(lambda body, _: refused if body["max_tokens"] > 4096 else "Lima.") as server:
        asking = Asking(server, tmp_path)
        long, short = asking(request(max_tokens=9000), request(max_tokens=1024))
        assert isinstance(long, AnswerError)
        assert isinstance(short, Reply)


def test_two_names_of_one_model_pay_once(tmp_path: Path) -> None:
    with served(lambda _, number: f"answer {number}") as server:
        asking = Asking(server, tmp_path)
        other = Asking(server, tmp_path).client
        other._answers = asking.client._answers

        async def both() -> list[Reply]:
            async with asking.client.opened() as one, other.opened() as two:
                return await asyncio.gather(one.answer(request()), two.answer(request()))

        first, second = asyncio.run(both())
        assert first == second
        assert len(server.asked) == 1


def test_the_first_of_two_answers_to_one_request_stays(tmp_path: Path) -> None:
    answers = Answers(tmp_path)
    assert answers.keep("abc", {"text": "one"}) == {"text": "one"}
    assert answers.keep("abc", {"text": "two"}) == {"text": "one"}
    assert not list(tmp_path.rglob("*.part"))


def test_a_disk_without_hard_links_keeps_the_first_answer_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    answers = Answers(tmp_path)
    assert answers.keep("abc", {"text": "one"}) == {"text": "one"}
    assert answers.keep("abc", {"text": "two"}) == {"text": "one"}
    assert answers.keep("abc", {"text": "three"}, replace=True) == {"text": "three"}
    assert not list(tmp_path.rglob("*.part"))
