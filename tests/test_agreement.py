"""A worker that fails alone: all leave with its error, or it raises and the launcher ends them."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from metaalign.errors import ModelError, StorageError
from metaalign.store.token_store import TokenStore
from metaalign.train.engines.agreement import all_or_none, from_first, met_by_all, together
from tests.tiny_task import settings_of, tiny_task
from tests.worker_pool import run_workers

ROOT = Path(__file__).resolve().parents[1]


def test_what_one_worker_lacks_all_meet_at_once(
    tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    task = tiny_task(tmp_path, make_store, "dpo")
    store, model = tmp_path / "store", Path(task.initial)
    lame = [tmp_path / f"lame-{number}" for number in range(4)]
    for folder in lame:
        shutil.copytree(store, folder / "store")
        shutil.copytree(model, folder / model.name)
    shutil.rmtree(lame[0] / "store")
    shutil.rmtree(lame[1] / model.name)
    run_workers("whole_run", [task], tmp_path)  # from here on there is a reference
    shutil.rmtree(tmp_path / "dpo")
    (lame[3] / "store" / "reference").touch()
    first, second = run_workers("lacking", [task] * 4, tmp_path, timeout_s=200)
    assert [each[:3] for each in first] == [each[:3] for each in second]
    named = "(worker 1 of 2, on "
    kinds = ["DataError", "ModelError", "OSError", "OSError"]
    said = [
        (f"{lame[0]}/store: the folder does not exist; run the prepare job first", named),
        (f"model.path '{lame[1]}/{model.name}' cannot be read", named),
        (f"{lame[2]}/store/reference", "No such file or directory", named),
        (f"{lame[3]}/store/reference", "Not a directory"),
    ]
    for kind, words, (name, text, everywhere, seconds) in zip(kinds, said, first, strict=True):
        assert name == kind
        assert all(word in text for word in words), text
        assert everywhere is (None if kind == "OSError" else True)
        assert seconds < 60


def test_one_process_agrees_with_itself() -> None:
    def fail() -> None:
        raise StorageError("full")

    assert together(lambda: 7) == [7]
    assert all_or_none(lambda: 7) == from_first(lambda: 7) == 7
    assert not StorageError("full").on_every_worker
    for agree in (together, all_or_none, from_first):
        with pytest.raises(StorageError, match=r"^full$") as met:
            agree(fail)
        assert met.value.on_every_worker
    assert met_by_all(ModelError("no")).on_every_worker


@pytest.mark.slow
def test_torchrun_ends_all_when_a_worker_fails_amid_a_step(
    tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    make_store(tmp_path / "store")
    long = {"length": {"epochs": None, "max_steps": 3000}, "checkpoint": {"every_steps": 20}}
    settings: dict[str, Any] = settings_of(tmp_path, output="sft", **long)
    del settings["workers"]
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, "-m", *launcher, "-m", "tests.lone_failure", "sft"]
    began = time.monotonic()
    done = subprocess.run(
        [*command, str(tmp_path / "sft.yaml")],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 1
    assert "StorageError: the disk of worker 1 is gone" in done.stderr
    assert time.monotonic() - began < 100
