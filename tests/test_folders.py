"""Checkpoints in object storage: a real S3 server answers, which the test starts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
from moto.server import ThreadedMotoServer
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from metaalign.config import ExportConfig, SFTConfig
from metaalign.errors import ConfigError, StorageError, TrainingError
from metaalign.folders import delete_folder, open_folder, place_below, whole_folder
from metaalign.store.token_store import TokenStore
from metaalign.train.checkpoints.checkpoint_format import (
    find_damage,
    iterate_weights,
    read_manifest,
    step_folder,
)
from metaalign.train.checkpoints.history import (
    agree_on_checkpoint,
    newest_checkpoint,
    newest_whole,
    saved_steps,
)
from metaalign.train.checkpoints.saving import Saver
from metaalign.train.engines.starting import build_policy
from metaalign.train.export import run_export
from metaalign.train.launch.driver import begin_run, prepare_task
from metaalign.train.task import Task
from tests.object_storage import BUCKET, address_of
from tests.plain_engine import PlainEngine
from tests.tiny_task import settings_of, tiny_task
from tests.worker_pool import run_workers
from tests.worker_scenarios import run_task


@pytest.fixture
def runs(server: ThreadedMotoServer) -> str:
    """A folder in the bucket, as the setting names it."""
    return address_of(server, BUCKET, "runs")


def held() -> dict[str, bytes]:
    """All objects of the bucket."""
    client = boto3.client("s3")
    listed = client.list_objects_v2(Bucket=BUCKET).get("Contents", [])
    return {
        each["Key"]: client.get_object(Bucket=BUCKET, Key=each["Key"])["Body"].read()
        for each in listed
    }


def put(key: str, data: bytes) -> None:
    boto3.client("s3").put_object(Bucket=BUCKET, Key=key, Body=data)


def every_3(storage: str) -> dict[str, Any]:
    return {"every_steps": 3, "storage": storage}


def start(task: Task) -> PlainEngine:
    return PlainEngine(build_policy(task, None), task.config.optimizer)


def engine_of(task: Task) -> PlainEngine:
    engine = start(task)
    engine.prepare_state(1)
    return engine


def test_the_newest_and_the_best_are_kept_whole(
    runs: str, tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    run = place_below(runs, "sft")
    engine = engine_of(tiny_task(tmp_path, make_store))
    saver = Saver(engine, tmp_path, identity={}, newest=2, checkpoints=run)
    for step in (1, 2, 3, 4):
        saver.save(step, {"best": {"step": 1}})
    saver.wait()
    assert saved_steps(run) == [4, 3, 1]
    newest = newest_whole(run)
    assert newest is not None
    assert str(newest) == f"s3://bucket/runs/sft/{step_folder(4)}"
    weights = dict(iterate_weights(newest))
    for name, value in weights.items():
        assert value.flatten().equal(engine.shard(name, None))
    kept = {key.split("/")[2] for key, data in held().items() if data}
    assert kept == {step_folder(step) for step in (1, 3, 4)}
    assert not list(tmp_path.glob("step-*"))


def test_a_run_goes_on_from_object_storage_and_is_exported_from_there(
    runs: str, tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    whole = tiny_task(tmp_path, make_store, output="whole")
    engine = start(whole)
    expected = run_task(whole, engine)["losses"]
    broken = tiny_task(tmp_path, make_store, checkpoint=every_3(runs))
    begin_run(broken)
    before = run_task(broken, start(broken), stop_at=3)["losses"]
    after = run_task(broken, start(broken))["losses"]
    assert sorted(after) == [4, 5, 6]
    assert before | after == expected
    exported = run_export(ExportConfig(storage=str(tmp_path), run="sft", output="out"))
    tokens = torch.arange(5, 45)[None]
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(exported)(tokens).logits
        assert torch.equal(logits, engine.policy.model(tokens).logits)
    assert not list(Path(broken.folder).glob("step-*"))


def test_a_damaged_checkpoint_gives_way_to_the_one_before_it_and_is_set_aside(
    runs: str,
    tmp_path: Path,
    make_store: Callable[..., TokenStore],
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = place_below(runs, "sft")
    engine = engine_of(tiny_task(tmp_path, make_store))
    saver = Saver(engine, tmp_path, identity={}, newest=2, checkpoints=run)
    for step in (1, 2):
        saver.save(step, {})
    saver.wait()
    key = f"runs/sft/{step_folder(2)}/__0_0.distcp"
    data = bytearray(held()[key])
    data[len(data) // 2] ^= 1
    put(key, bytes(data))
    chosen = agree_on_checkpoint(engine, run)
    assert chosen is not None
    assert chosen.name == step_folder(1)
    assert f"s3://{BUCKET}/{key} has another checksum" in caplog.text
    assert saved_steps(run) == [1]
    assert f"runs/sft/{step_folder(2)}/DAMAGED" in held()
    saver.save(2, {})
    saver.wait()
    assert saved_steps(run) == [2, 1]
    assert newest_whole(run) is not None
    assert f"runs/sft/{step_folder(2)}/DAMAGED" not in held()


@pytest.mark.slow  # the client tries for seconds, five times over
def test_what_cannot_be_reached_is_not_called_damaged_and_stops_the_job(
    server: ThreadedMotoServer, runs: str, tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    run = place_below(runs, "sft")
    engine = engine_of(tiny_task(tmp_path, make_store))
    saver = Saver(engine, tmp_path, identity={}, newest=2, checkpoints=run)
    saver.save(1, {})
    saver.wait()
    whole = newest_whole(run)
    assert whole is not None
    server.stop()
    for look in (find_damage, read_manifest):
        with pytest.raises(StorageError, match="object storage failed"):
            look(whole)
    for look in (newest_whole, saved_steps, newest_checkpoint):
        with pytest.raises(StorageError, match="s3://bucket/runs/sft: object storage failed"):
            look(run)
    with pytest.raises(StorageError, match="s3://bucket/runs/sft: object storage failed"):
        agree_on_checkpoint(engine, run)
    saver.save(2, {})
    with pytest.raises(StorageError, match=r"step 2: the checkpoint could not be written: s3://"):
        saver.wait()


def test_a_bucket_that_is_not_there_is_told_before_the_workers_start(
    server: ThreadedMotoServer, tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    make_store(tmp_path / "store")
    settings = settings_of(tmp_path, checkpoint={"storage": address_of(server, "none", "runs")})
    with pytest.raises(StorageError, match=r"s3://none/runs/sft.*bucket"):
        begin_run(prepare_task(SFTConfig.model_validate(settings), "cpu"))


def test_the_checkpoints_of_a_run_in_another_folder_are_not_continued(
    runs: str, tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    for name in ("one", "two"):
        make_store(tmp_path / name / "store")
        settings = settings_of(tmp_path / name, checkpoint={"storage": runs})
        task = prepare_task(SFTConfig.model_validate(settings), "cpu")
        if name == "one":
            begin_run(task)
            begin_run(task)
            continue
        with pytest.raises(TrainingError, match=f"holds the run of {tmp_path}/one"):
            begin_run(task)


def test_another_runs_own_folder_is_not_taken_for_checkpoints(
    tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    for name in ("one", "two"):
        make_store(tmp_path / name / "store")
    task = prepare_task(SFTConfig.model_validate(settings_of(tmp_path / "one")), "cpu")
    begin_run(task)
    settings = settings_of(tmp_path / "two", checkpoint={"storage": str(tmp_path / "one")})
    with pytest.raises(TrainingError, match=r"checkpoint\.storage names the folder of another run"):
        begin_run(prepare_task(SFTConfig.model_validate(settings), "cpu"))


def test_a_run_does_not_start_anew_because_another_place_was_named(
    tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    make_store(tmp_path / "store")

    def prepared(**checkpoint: Any) -> Task:
        settings = settings_of(tmp_path, checkpoint={"every_steps": 3, **checkpoint})
        return prepare_task(SFTConfig.model_validate(settings), "cpu")

    task = prepared()
    begin_run(task)
    run_task(task, start(task))
    with pytest.raises(TrainingError, match=f"of this run are kept in {task.folder}, and there"):
        prepared(storage=str(tmp_path / "other"))


@pytest.mark.slow
def test_two_workers_write_one_checkpoint(
    runs: str, tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    tasks = [
        tiny_task(tmp_path, make_store, output=name, checkpoint=checkpoint)
        for name, checkpoint in (("whole", {"every_steps": 3}), ("broken", every_3(runs)))
    ]
    for task in tasks:
        Path(task.folder).mkdir(exist_ok=True)
    # Fresh processes, which have the credentials of the bucket.
    for worker in run_workers("resume", tasks, tmp_path, fresh=True):
        assert worker["same"] == [True]
        assert worker["before"]["losses"] | worker["after"]["losses"] == worker["whole"]["losses"]
    names = {key.rsplit("/", 1)[1] for key in held()}
    assert {"__0_0.distcp", "__1_0.distcp", ".metadata", "COMPLETE"} <= names


def test_a_folder_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"

    def write(text: str) -> None:
        with whole_folder(folder) as unfinished:
            unfinished.mkdir()
            (unfinished / "weights").write_text(text)
            if text == "broken":
                raise StorageError(text)

    write("first")
    write("second")
    with pytest.raises(StorageError):
        write("broken")
    assert (folder / "weights").read_text() == "second"
    rename = Path.rename

    def fail_once(path: Path, target: Path) -> Path:
        if path.name == ".model.part":
            raise PermissionError("no")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(PermissionError):
        write("third")
    monkeypatch.undo()
    assert (folder / "weights").read_text() == "second"
    folder.rename(tmp_path / ".model.earlier")  # as a kill between the two renames leaves it
    with pytest.raises(StorageError):
        write("broken")
    assert (folder / "weights").read_text() == "second"
    write("fourth")
    assert (folder / "weights").read_text() == "fourth"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_place_is_a_path_or_a_uri(tmp_path: Path) -> None:
    def place(storage: str) -> Any:
        return SFTConfig.model_validate(settings_of(tmp_path, checkpoint={"storage": storage}))

    assert place("file:///a/b/").checkpoint.storage == "/a/b"
    assert place("s3://a/b/").checkpoint.storage == "s3://a/b"
    assert place("s3://a/?region=x").checkpoint.storage == "s3://a?region=x"
    assert place("abfs://box@account/c").checkpoint.storage == "abfs://box@account/c"
    for wrong in ("a/b", "s3://", "ftp://a/b"):
        with pytest.raises(ValidationError, match="in object storage such as s3://bucket/runs"):
            place(wrong)
    assert place_below("s3://a/b?region=x", "sft") == "s3://a/b/sft?region=x"
    assert place_below("/a/b", "sft") == "/a/b/sft"
    with pytest.raises(ConfigError, match=r"s3://a/b\?nosuch=1: "):
        open_folder("s3://a/b?nosuch=1")


def test_another_disk_holds_the_checkpoints_where_one_is_named(
    tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    changed = {"checkpoint": {"every_steps": 3, "storage": str(tmp_path / "other")}}
    task = tiny_task(tmp_path, make_store, **changed)
    begin_run(task)
    run_task(task, start(task))
    assert saved_steps(tmp_path / "other" / "sft") == [6, 3]
    assert saved_steps(task.folder) == []
    delete_folder(tmp_path / "other" / "sft")
    delete_folder(tmp_path / "other" / "sft")
    assert not (tmp_path / "other" / "sft").exists()
