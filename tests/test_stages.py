"""What a stage of the pipeline depends on, and what becomes of what it wrote before."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from metaalign.config import ExportConfig
from metaalign.pipeline.stages import Records, stages_of
from metaalign.source_code import PACKAGE
from metaalign.store.token_store import TokenStore
from metaalign.train.checkpoints.checkpoint_format import iterate_weights
from metaalign.train.checkpoints.history import newest_checkpoint
from metaalign.train.export import run_export
from metaalign.train.model.loading import find_model
from tests.test_export import trained
from tests.test_pipeline import planned, whole
from tests.tiny_task import ARCHITECTURE, tiny_task


def test_code_and_the_name_that_a_model_is_registered_under_are_inputs(
    tmp_path: Path,
) -> None:
    plain = planned(whole(tmp_path)).fingerprints
    named = planned(whole(tmp_path, tracking={"registered_model": "m"})).fingerprints
    assert plain["export"] != named["export"]
    package = tmp_path / "metaalign"
    shutil.copytree(PACKAGE, package)

    def changed_by(file: str) -> set[str]:
        source = (package / file).read_text()
        (package / file).write_text(f"{source}\nchanged = True\n")
        config = whole(tmp_path)
        records = Records(config.storage, package=package)
        records.plan(stages_of(config))
        edited = records.fingerprints
        (package / file).write_text(source)
        return {name for name in plain if plain[name] != edited[name]}

    for file in (
        "serve/app.py",
        "config/serve.py",
        "pipeline/run.py",
        "tracking/runs.py",
        "data/view.py",
        "data/work/overview.py",
        "train/loop/progress.py",
        "train/launch/on_ray.py",
        "train/launch/restarts.py",
    ):
        assert changed_by(file) == set(), file
    assert changed_by("evaluate/rates.py") == {"evaluate"}
    assert changed_by("generate/embedded.py") == {"evaluate"}
    # What follows a stage runs again because its input counts by that stage's fingerprint.
    trained = set(plain) - {"prepare"}
    for file in (
        "config/preference_losses.py",
        "train/losses/formulas.py",
        "train/engines/optimizers.py",
        "steps/packing.py",
    ):
        assert changed_by(file) == trained, file
    for file in ("preferences/families.py", "data/formats/chats.py", "upstream/client.py"):
        assert changed_by(file) == set(plain), file


def test_a_changed_stage_finds_no_checkpoint_of_the_one_before_it(
    tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    """Its checkpoints are kept elsewhere, where nothing is renamed."""

    def start(budget: int) -> Any:
        given = {"model": {"architecture": ARCHITECTURE}, "batch": {"budget": budget}}
        elsewhere = {"every_steps": 3, "storage": f"{tmp_path}/elsewhere"}
        config = whole(tmp_path, sft={**given, "checkpoint": elsewhere})
        records, stage = planned(config), stages_of(config)[1]
        moved = records.start(stage)
        checkpoint = records.settings_of(stage).checkpoint.model_dump()
        return moved, tiny_task(tmp_path, make_store, checkpoint=checkpoint)

    _, first = start(256)
    assert newest_checkpoint(first.checkpoints) is None
    trained(first)
    again = start(256)[1]
    assert again.checkpoints == first.checkpoints
    assert newest_checkpoint(again.checkpoints) is not None, "the same settings go on"
    moved, other = start(512)
    assert moved == [tmp_path / "sft.previous"]
    assert newest_checkpoint(other.checkpoints) is None
    newest = newest_checkpoint(first.checkpoints)
    assert newest is not None, "nothing is deleted"
    before = ExportConfig(storage=str(tmp_path), run="sft.previous", output="out")
    exported = AutoModelForCausalLM.from_pretrained(run_export(before))
    for name, value in iterate_weights(newest):
        assert torch.equal(exported.get_parameter(name.removeprefix("model.")), value)


def test_a_model_of_the_hub_is_named_as_the_job_names_it(tmp_path: Path) -> None:
    """With or without a slash; a folder that is there or will be is no hub name."""
    (tmp_path / "mine").mkdir()

    def of(path: str) -> tuple[tuple[str, ...], list[str]]:
        dpo = stages_of(whole(tmp_path, dpo={"model": {"path": path}}))[3]
        return dpo.names, [read.name for read in dpo.reads]

    assert of("gpt2") == (("gpt2",), ["store"])
    assert of("Qwen/Qwen3-0.6B") == (("Qwen/Qwen3-0.6B",), ["store"])
    assert of("sft_model") == ((), ["store", "sft_model"])
    assert of("initial") == ((), ["store", "initial"])
    assert of("mine") == ((), ["store", "mine"])
    assert of("/no/such") == ((), ["store", "such"])
    assert find_model("gpt2", str(tmp_path)) == "gpt2"
