"""Export: what is loaded from the folder is the policy that was trained."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from metaalign.config import ExportConfig
from metaalign.errors import CheckpointError, ModelError, TemplateError
from metaalign.folders import weights_fingerprint
from metaalign.store.token_store import TokenStore
from metaalign.template import Template
from metaalign.train.checkpoints.recipe import MODEL_FOLDER
from metaalign.train.engines.starting import build_policy
from metaalign.train.export import run_export
from metaalign.train.launch.driver import begin_run
from metaalign.train.task import Task
from tests.plain_engine import PlainEngine
from tests.tiny_task import ARCHITECTURE, tiny_task
from tests.worker_scenarios import run_task


def trained(task: Task) -> PlainEngine:
    """The engine after a whole run, whose folder can be exported."""
    begin_run(task)
    engine = PlainEngine(build_policy(task, None), task.config.optimizer)
    run_task(task, engine)
    return engine


@pytest.mark.parametrize("tied", [False, True])
def test_the_folder_gives_the_live_policys_logits(
    tied: bool, tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    model = {"architecture": {**ARCHITECTURE, "tie_word_embeddings": tied}}
    task = tiny_task(tmp_path, make_store, model=model)
    live = trained(task).policy.model
    folder = run_export(ExportConfig(storage=str(tmp_path), run="sft", output="out"))
    exported = AutoModelForCausalLM.from_pretrained(folder)
    start = AutoModelForCausalLM.from_pretrained(task.initial)
    tokens = torch.arange(5, 45)[None]
    with torch.no_grad():
        assert torch.equal(exported(tokens).logits, live(tokens).logits)
        assert not torch.allclose(exported(tokens).logits, start(tokens).logits)
    assert (folder / "model.safetensors").is_file()


def test_a_bfloat16_run_is_exported_in_bfloat16(
    tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    task = tiny_task(tmp_path, make_store)
    live = trained(task).policy.model
    recipe = tmp_path / "sft" / "recipe.json"
    recipe.write_text(recipe.read_text().replace('"dtype": "float32"', '"dtype": "bfloat16"', 1))
    folder = run_export(ExportConfig(storage=str(tmp_path), run="sft", output="out"))
    exported = AutoModelForCausalLM.from_pretrained(folder)
    assert exported.dtype == torch.bfloat16
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    expected = live.to(torch.bfloat16).state_dict()
    for name, value in exported.state_dict().items():
        assert torch.equal(value, expected[name]), name
    tokens = torch.arange(5, 45)[None]
    with torch.no_grad():
        assert torch.equal(exported(tokens).logits, live(tokens).logits)


PEAK = """
import sys
from transformers import AutoModelForCausalLM
from metaalign.config import ExportConfig
from metaalign.train.export import run_export

def read(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

config = ExportConfig(storage=sys.argv[1], run="sft", output="out")
before = read("VmRSS:")
run_export(config)
print(read("VmHWM:") - before)
"""
# Not ru_maxrss: a child starts with its parent's.


def test_export_never_holds_the_model_twice(
    tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    wide = {**ARCHITECTURE, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 4}
    task = tiny_task(
        tmp_path,
        make_store,
        model={"architecture": wide},
        optimizer={"name": "sgd", "learning_rate": 1e-3},
        length={"epochs": None, "max_steps": 1},
    )
    model_bytes = 4 * sum(p.numel() for p in trained(task).policy.parameters())
    assert model_bytes > 200e6
    command = [sys.executable, "-c", PEAK, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    peak_bytes = int(done.stdout.splitlines()[-1])
    print(f"peak {peak_bytes / 1e6:.0f} MB for a model of {model_bytes / 1e6:.0f} MB")
    # Two copies would be 2.0; what the imports and the reader take is the rest of the way to 1.6.
    assert model_bytes < peak_bytes < 1.6 * model_bytes


def test_the_folder_carries_template_end_token_and_numbers(
    tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    task = tiny_task(tmp_path, make_store, "dpo")
    trained(task)
    folder = run_export(ExportConfig(storage=str(tmp_path)))
    store = TokenStore.open(tmp_path / "store")
    assert Template.verify(folder).fingerprint == store.template.fingerprint
    assert json.loads((folder / "template.json").read_text())["golden"]
    generation = GenerationConfig.from_pretrained(folder)
    assert generation.eos_token_id == generation.pad_token_id == store.template.eos_id
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == (
        store.template.tokenizer.get_vocab()
    )
    card = (folder / "README.md").read_text()
    result = json.loads((tmp_path / "dpo" / "result.json").read_text())
    assert f"| loss | 0.6931 | {result['held_out']['after']['loss']:.4g} |" in card
    assert f"in the right order: {result['pair_order']['accuracy']:.3f}" in card
    assert '"learning_rate": 0.001' in card
    recipe = json.loads((folder / "recipe.json").read_text())
    assert (recipe["job"], recipe["initial"]) == ("dpo", task.initial)
    assert recipe["initial_weights"] == weights_fingerprint(task.initial)


def test_a_run_that_cannot_be_exported_is_named(
    tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    config = ExportConfig(storage=str(tmp_path), run="sft")
    with pytest.raises(CheckpointError, match=r"sft: the run's folder does not exist.*set `run`"):
        run_export(config)
    (tmp_path / "sft").mkdir()
    with pytest.raises(CheckpointError, match="holds no training run"):
        run_export(config)
    task = tiny_task(tmp_path, make_store)
    begin_run(task)
    with pytest.raises(CheckpointError, match="there is no complete checkpoint of sft"):
        run_export(config)
    trained(task)
    golden = tmp_path / "sft" / MODEL_FOLDER / "template.json"
    golden.write_text(golden.read_text().replace('"fingerprint": "', '"fingerprint": "0'))
    with pytest.raises(TemplateError):
        run_export(config)
    assert not (tmp_path / "model").exists()


KILLED = """
import os, pathlib, signal, sys
from metaalign.config import ExportConfig
from metaalign.train.export import run_export

rename = pathlib.Path.rename
def rename_or_die(path, target):
    if pathlib.Path(target).name == "out":
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(path, target)

pathlib.Path.rename = rename_or_die
run_export(ExportConfig(storage=sys.argv[1], run="sft", output="out"))
"""


def test_a_killed_export_leaves_a_model_at_every_moment(
    tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    """Killed between the two renames: the earlier model is back when the next one begins."""
    trained(tiny_task(tmp_path, make_store))
    config = ExportConfig(storage=str(tmp_path), run="sft", output="out")
    folder = run_export(config)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "README.md").write_text("the earlier one")
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    killed = subprocess.run(command, env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not folder.exists()
    golden = tmp_path / "sft" / MODEL_FOLDER / "config.json"
    config_text = golden.read_text()
    golden.write_text(config_text.replace('"hidden_size": 16', '"hidden_size": 32'))
    with pytest.raises(ModelError, match="tensors are not those of its config"):
        run_export(config)
    assert (folder / "README.md").read_text() == "the earlier one"
    assert (folder / "model.safetensors").read_bytes() == weights
    golden.write_text(config_text)
    run_export(config)
    assert (folder / "README.md").read_text() != "the earlier one"
    assert [path.name for path in tmp_path.glob(".out*")] == []


@pytest.mark.parametrize("output", ["sft", "store", "initial"])
def test_nothing_but_an_exported_model_is_replaced(
    tmp_path: Path, make_store: Callable[..., TokenStore], output: str
) -> None:
    trained(tiny_task(tmp_path, make_store))
    (tmp_path / "store").mkdir(exist_ok=True)
    before = sorted((tmp_path / output).rglob("*"))
    with pytest.raises(CheckpointError, match="export would replace it"):
        run_export(ExportConfig(storage=str(tmp_path), run="sft", output=output))
    assert sorted((tmp_path / output).rglob("*")) == before
    run_export(ExportConfig(storage=str(tmp_path), run="sft", output="model"))
    run_export(ExportConfig(storage=str(tmp_path), run="sft", output="model"))
