"""Stores that a teacher helped to make: metaalign's own server, and one that fails on purpose."""

import json
import os
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.data

from metaalign.config import PrepareConfig
from metaalign.data.prepare import prepare_store
from metaalign.errors import DataError, UpstreamError
from metaalign.generate.embedded import EmbeddedEngine, Sampling
from metaalign.store.token_store import TokenStore
from metaalign.template import Segment
from tests.local_cluster import until
from tests.own_server import own_server
from tests.scripted_server import served
from tests.test_parts import write
from tests.tiny_model import save_tiny_model

pytestmark = pytest.mark.usefixtures("ray_cluster")


def config_of(storage: Path, url: str, **settings: Any) -> PrepareConfig:
    teacher = {
        "base_url": url,
        "model": "metaalign",
        "max_retries": 0,
        **settings.pop("limits", {}),
    }
    base = {
        "storage": str(storage),
        "tokenizer": {"vocabulary_size": 300},
        "teachers": {"t": teacher},
        **({"held_out_ratio": 0} if "sources" in settings else {}),
    }
    return PrepareConfig.model_validate({**base, **settings})


def texts(store: TokenStore, example: int) -> list[str]:
    start, stop = store.columns.response_start[example : example + 2]
    return [store.template.decode(store.response(example, k)) for k in range(stop - start)]


def rows(count: int) -> list[dict[str, Any]]:
    return [
        {
            "system_info": "Answer in capitals.",
            "user_info": f"I am user {number}.",
            "turns": [{"role": "user", "text": f"What is the capital of Peru, {number}?"}],
            "responses": [
                {"text": "Lima, I think. It lies by the sea.", "scores": {"preference": 1}},
                {"text": "Who knows?", "scores": {"preference": 0}},
            ],
        }
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("teacher") / "model", context=512)


def test_rejected_responses_come_from_the_model_of_the_first_stage(
    tmp_path: Path, model: Path
) -> None:
    """What the server draws under each meta-prompt stands last; asked once, whatever comes."""
    file = write(tmp_path / "rows.jsonl", rows(6))
    source = {"path": str(file), "negatives": {"teacher": "t", "max_tokens": 300}}
    with own_server(model, max_tokens=300) as url:
        store = prepare_store(config_of(tmp_path, url, sources=[source]))
        spent = store.manifest["teachers"]["t"]
        assert (spent["failed"], spent["kept"]) == (0, 0)
        assert spent["asked"] >= 6
        assert spent["completion_tokens"] > 0
        other = {"tokenizer": {"vocabulary_size": 270}, "output": "other"}
        again = prepare_store(config_of(tmp_path, url, sources=[source], **other))
    assert again.manifest["teachers"]["t"]["asked"] == 0
    engine = EmbeddedEngine(model, device="cpu")
    for number in range(6):
        said = texts(store, number)
        assert said == texts(again, number)
        assert said[:2] == ["Lima, I think. It lies by the sea.", "Who knows?"]
        prompt = engine.template.prompt_ids(
            [
                Segment("system_info", "Answer in capitals."),
                Segment("user_info", f"I am user {number}."),
                Segment("user_query", f"What is the capital of Peru, {number}?"),
            ]
        )
        seed = seed_of("0/sampled/0")
        (answer,) = engine.generate([prompt], Sampling(300, temperature=1.0, seed=seed))
        assert said[2] == engine.template.decode(answer.tokens).strip()
        assert store.tags(number)["negative"] == "sampled"
    assert store.template.fingerprint != again.template.fingerprint


def seed_of(draw: str) -> int:
    return zlib.crc32(draw.encode()) >> 1


def test_tails_that_cannot_see_the_meta_prompt_follow_the_heads_of_the_best(
    tmp_path: Path, model: Path
) -> None:
    file = write(tmp_path / "rows.jsonl", rows(4))
    negatives = {"teacher": "t", "way": "hidden_tails", "max_tokens": 40, "replace": True}
    source = {"path": str(file), "negatives": negatives}
    with own_server(model) as url:
        store = prepare_store(config_of(tmp_path, url, sources=[source]))
    for number in range(4):
        best, negative = texts(store, number)
        assert best == "Lima, I think. It lies by the sea."
        assert negative != best
        assert negative.split()[0].startswith("Lima,")
    # Only the query differs, and nothing else is shown: two sentences each.
    assert store.manifest["teachers"]["t"]["asked"] == 8


def test_a_server_that_would_not_go_on_from_a_head_is_refused_before_it_is_asked(
    tmp_path: Path,
) -> None:
    file = write(tmp_path / "rows.jsonl", rows(1))
    source = {"path": str(file), "negatives": {"teacher": "t", "way": "hidden_tails"}}
    cards = [{"id": "metaalign", "object": "model", "created": 0, "owned_by": "openai"}]
    with served(lambda _, __: "x", cards=cards) as server:
        with pytest.raises(UpstreamError, match=r"names its owner 'openai'\. Set way=hidden"):
            prepare_store(config_of(tmp_path, server.url, sources=[source]))
        assert server.asked == []


def _refuses(word: str) -> Any:
    """A server that answers by the query, and refuses those with a word."""

    def script(body: dict[str, Any], _: int) -> Any:
        query = body["messages"][-1]["content"]
        if word in query:
            return 400, {}, {"error": {"message": f"cannot speak of that {word}"}}
        return f"to {query}"

    return script


def test_what_a_teacher_does_not_answer_is_quarantined_told_and_asked_again(
    tmp_path: Path,
) -> None:
    file = write(tmp_path / "rows.jsonl", [{"prompt": f"Query {n}?"} for n in range(20)])
    source = {"path": str(file), "responses": {"teacher": "t"}, "max_bad_ratio": 0.2}
    with served(_refuses("Query 1?")) as server:
        store = prepare_store(config_of(tmp_path, server.url, sources=[source]))
        assert [texts(store, n)[0] for n in (0, 1, 18)] == [f"to Query {n}?" for n in (0, 2, 19)]
        (entry,) = store.manifest["ledger"]
        counts = [entry[name] for name in ("rows", "examples", "untaught", "written")]
        assert counts == [20, 20, 1, 19]
        ((reason, count),) = entry["untaughts"].items()
        assert "cannot speak of that Query 1?" in reason
        assert count == 1
        (kept,) = (store.path / "quarantine").iterdir()
        bad = json.loads(kept.read_text())
        assert (bad["file"], bad["row"], bad["text"]) == (str(file), 1, "Query 1?")
        assert len(server.asked) == 20
    with served(_refuses("nothing")) as other:  # at another address, whose answers are its own
        assert len(prepare_store(config_of(tmp_path, other.url, sources=[source]))) == 20
        assert len(other.asked) == 20


def test_a_store_with_gaps_is_made_again_and_only_they_are_asked_for(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [{"prompt": f"Query {n}?"} for n in range(20)])
    source = {"path": str(file), "responses": {"teacher": "t"}, "max_bad_ratio": 0.2}
    word = ["Query 1"]
    with served(lambda body, number: _refuses(word[0])(body, number)) as server:
        config = config_of(tmp_path, server.url, sources=[source])
        with pytest.raises(
            DataError, match=r"no answer for 11 of 20 examples, more than max_bad_ratio 0\.2"
        ):
            prepare_store(config)
        first = (tmp_path / "store-quarantine").iterdir()
        assert len(next(first).read_text().splitlines()) == 11
        word[0] = "Query 19"
        assert len(prepare_store(config)) == 19
        assert len(server.asked) == 20 + 11
        word[0] = "nothing"
        assert len(prepare_store(config)) == 20
        assert len(server.asked) == 20 + 11 + 1
        assert len(prepare_store(config)) == 20  # finished, and nobody is asked
        assert len(server.asked) == 20 + 11 + 1


def test_too_many_failures_end_it_before_everything_is_asked(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [{"prompt": f"Query {n}?"} for n in range(900)])
    source = {"path": str(file), "responses": {"teacher": "t"}}
    with served(_refuses("Query")) as server:
        config = config_of(tmp_path, server.url, sources=[source], limits={"concurrency": 2})
        with pytest.raises(
            UpstreamError, match=r"no answer for 11 of the first 11 examples.*cannot"
        ):
            prepare_store(config)
        assert len(server.asked) < 40


@pytest.mark.slow
def test_a_killed_job_goes_on_without_paying_twice(tmp_path: Path) -> None:
    """SIGKILL while it asks; what was under way is all that is asked for again."""
    file = write(tmp_path / "rows.jsonl", [{"prompt": f"Query {n}?"} for n in range(60)])

    def slow(body: dict[str, Any], _: int) -> str:
        time.sleep(0.05)
        return _refuses("nothing")(body, 0)

    with served(slow) as server:
        config = tmp_path / "prepare.yaml"
        source = {"path": str(file), "responses": {"teacher": "t"}}
        settings = config_of(tmp_path, server.url, sources=[source], limits={"concurrency": 2})
        config.write_text(json.dumps(settings.model_dump(mode="json")))
        environment = {**os.environ, "RAY_ADDRESS": "", "PYTHONPATH": str(Path.cwd())}
        job = subprocess.Popen(
            [sys.executable, "-m", "ray_jobs.prepare", str(config)],
            env=environment,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
        )
        try:
            until(lambda: len(server.asked) > 20, seconds=120, what="some answers")
        finally:
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()
        until(lambda: server.under_way == 0, seconds=60, what="what is under way")
        asked = len(server.asked)
        assert asked < 60
        store = prepare_store(settings)
        assert len(store) == 60
        times = Counter(body["messages"][-1]["content"] for body in server.asked)
        assert len(times) == 60
        assert sum(times.values()) - 60 <= 4, times  # two under way when it was killed, twice


def test_an_unknown_teacher_is_named(tmp_path: Path) -> None:
    source = {"path": "/rows.jsonl", "responses": {"teacher": "q"}}
    with pytest.raises(ValueError, match="teachers: q is not among them; known: t"):
        config_of(tmp_path, "http://127.0.0.1:1/v1", sources=[source])


def test_a_server_that_is_not_there_is_told_before_anything_starts(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", rows(1))
    source = {"path": str(file), "responses": {"teacher": "t"}}
    with pytest.raises(UpstreamError, match="no server answers"):
        prepare_store(config_of(tmp_path, "http://127.0.0.1:9/v1", sources=[source]))
    assert not list(tmp_path.glob(".store*"))


def test_bad_rows_are_found_before_anything_is_paid_for(tmp_path: Path) -> None:
    half = [{"prompt": f"Query {n}?"} if n % 2 else {"prompt": 7} for n in range(20)]
    file = write(tmp_path / "rows.jsonl", half)
    source = {"path": str(file), "responses": {"teacher": "t"}, "format": "prompts"}
    with served(_refuses("nothing")) as server:
        with pytest.raises(DataError, match="10 of 20 rows are bad"):
            prepare_store(config_of(tmp_path, server.url, sources=[source]))
        assert server.asked == []


def test_a_finished_store_needs_no_teacher_nor_do_kept_answers(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [{"prompt": f"Query {n}?"} for n in range(5)])
    source = {"path": str(file), "responses": {"teacher": "t"}}
    with served(_refuses("nothing")) as server:
        config = config_of(tmp_path, server.url, sources=[source])
        store = prepare_store(config)
    assert prepare_store(config).fingerprint == store.fingerprint
    other = config_of(tmp_path, server.url, sources=[source], output="other")
    assert prepare_store(other).manifest["teachers"]["t"]["kept"] == 5
    more = write(tmp_path / "more.jsonl", [{"prompt": f"Query {n}?"} for n in range(6)])
    source["path"] = str(more)
    with pytest.raises(UpstreamError, match="no server answers, and not every answer is stored"):
        prepare_store(config_of(tmp_path, server.url, sources=[source]))


@pytest.mark.slow
def test_asking_may_take_longer_than_ray_data_waits_for_progress(tmp_path: Path) -> None:
    """Half an hour by default; here ten seconds, of which it takes twice as many."""
    file = write(tmp_path / "rows.jsonl", [{"prompt": f"Query {n}?"} for n in range(20)])

    def slow(body: dict[str, Any], number: int) -> str:
        time.sleep(1)
        return _refuses("nothing")(body, number)

    source = {"path": str(file), "responses": {"teacher": "t"}}
    context = ray.data.DataContext.get_current()
    before = context.execution_no_progress_timeout_s
    context.execution_no_progress_timeout_s = 10
    try:
        with served(slow) as server:
            limits = {"concurrency": 1}
            config = config_of(tmp_path, server.url, sources=[source], limits=limits)
            assert len(prepare_store(config)) == 20
    finally:
        context.execution_no_progress_timeout_s = before
