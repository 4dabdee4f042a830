"""What a server says of its model, and what is remembered of it."""

from pathlib import Path
from typing import Any

import pytest

from metaalign.config.teacher import TeacherConfig
from metaalign.errors import UpstreamError
from metaalign.upstream import Answers, Reply, key_of, look_up
from tests.scripted_server import served
from tests.test_upstream import Asking, card, request


@pytest.mark.parametrize(
    ("cards", "version", "identity"),
    [
        (card(owned_by="metaalign", fingerprint="f1"), "", "f1"),
        (card(owned_by="vllm", fingerprint="f1"), "", None),
        (card(owned_by="openai"), "v2", "v2"),
        ([], "v2", "v2"),
        (None, "", None),
    ],
)
def test_answers_belong_to_the_weights_to_a_version_or_to_the_address(
    tmp_path: Path, cards: Any, version: str, identity: str | None
) -> None:
    with served(lambda _, __: "x", cards=cards) as server:
        config = TeacherConfig(base_url=server.url, model="m", version=version)
        assert look_up("big", config, tmp_path).identity == (identity or server.url)


def test_a_refused_key_is_found_before_anything_is_asked(tmp_path: Path) -> None:
    with served(lambda _, __: "x", cards=[], list_status=401) as server:
        config = TeacherConfig(base_url=server.url, model="m", key="NO_KEY")
        with pytest.raises(UpstreamError, match=r"read from \$NO_KEY, which is not set"):
            look_up("big", config, tmp_path)


def test_a_server_that_only_fails_is_not_taken_for_one_without_a_list(tmp_path: Path) -> None:
    with served(lambda _, __: "x", cards=[], list_status=503) as server:
        config = TeacherConfig(base_url=server.url, model="m", timeout_s=5)
        with pytest.raises(UpstreamError, match="503"):
            look_up("big", config, tmp_path)


def test_kept_answers_are_found_while_the_server_is_down(tmp_path: Path) -> None:
    with served(lambda _, __: "x", cards=card(owned_by="metaalign", fingerprint="f1")) as server:
        told = look_up("big", TeacherConfig(base_url=server.url, model="m"), tmp_path / "served")
        assert told.reached
    asking = Asking(server, tmp_path, timeout_s=2)
    assert asking.served.identity == told.identity == "f1"
    assert not asking.served.reached
    key = key_of(request(), TeacherConfig(base_url=server.url, model="m"), told)
    Answers(tmp_path / "answers").keep(key.name, {"text": "Lima.", "finish_reason": "stop"})
    found, missing = asking(request(), request("Another?"))
    assert isinstance(found, Reply)
    assert type(missing) is UpstreamError
    assert "no server answers, and not every answer is stored" in str(missing)
