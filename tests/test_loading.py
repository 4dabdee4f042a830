"""The model that training starts from: random, pretrained, with a vocabulary that fits."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from metaalign.config.sections import ModelConfig
from metaalign.errors import ModelError
from metaalign.folders import weights_fingerprint
from metaalign.store.token_store import TokenStore
from metaalign.store.tokenizer import load_tokenizer
from metaalign.template import Template
from metaalign.train.model.loading import (
    architecture_config,
    check_carried,
    load_policy,
    prepare_initial,
)
from tests.tiny_task import ARCHITECTURE, tiny_task
from tests.worker_pool import run_workers

RANDOM = ModelConfig(architecture=ARCHITECTURE)


@pytest.fixture(scope="module")
def store(
    tmp_path_factory: pytest.TempPathFactory, make_store: Callable[..., TokenStore]
) -> TokenStore:
    return make_store(tmp_path_factory.mktemp("models") / "store")


def initial(config: ModelConfig, template: Template, storage: Path, name: str = "initial") -> Path:
    return prepare_initial(config, template, storage / name, storage=str(storage))


def test_random_weights_follow_the_seed_and_fit_the_tokenizer(
    store: TokenStore, tmp_path: Path
) -> None:
    first = initial(RANDOM, store.template, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(first)
    assert model.config.vocab_size == len(store.template.tokenizer)
    assert model.config.eos_token_id == store.template.eos_id
    assert Template.verify(first).fingerprint == store.template.fingerprint
    same = initial(RANDOM, store.template, tmp_path, "same")
    other = initial(
        ModelConfig(architecture=ARCHITECTURE, seed=1), store.template, tmp_path, "other"
    )
    assert weights_fingerprint(same) == weights_fingerprint(first)
    assert weights_fingerprint(other) != weights_fingerprint(first)


def test_what_was_prepared_is_found_again_and_what_differs_lies_beside_it(
    store: TokenStore, tmp_path: Path
) -> None:
    folder = initial(RANDOM, store.template, tmp_path)
    written, weights = (folder / "model.safetensors").stat(), weights_fingerprint(folder)
    assert initial(RANDOM, store.template, tmp_path) == folder
    other = initial(ModelConfig(architecture=ARCHITECTURE, seed=1), store.template, tmp_path)
    assert (folder / "model.safetensors").stat().st_ino == written.st_ino
    assert weights_fingerprint(folder) == weights != weights_fingerprint(other)
    # By name there is the last one.
    assert (tmp_path / "initial").resolve() == other
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["initial", folder.name, other.name]
    )


def test_drivers_that_make_one_model_at_once_do_not_disturb_each_other(
    store: TokenStore, tmp_path: Path
) -> None:
    source = initial(RANDOM, store.template, tmp_path, "pretrained")
    (source / "template.json").unlink()
    config = ModelConfig(path=source.name)
    with ThreadPoolExecutor(8) as pool:
        made = [pool.submit(initial, config, store.template, tmp_path) for _ in range(8)]
    (folder,) = {each.result() for each in made}
    assert weights_fingerprint(folder) == weights_fingerprint(source)
    left = {path.name for path in tmp_path.iterdir()} - {"pretrained", source.name}
    assert left == {"initial", folder.name}


def test_a_folder_in_the_links_place_is_left_alone(store: TokenStore, tmp_path: Path) -> None:
    (tmp_path / "initial").mkdir()
    (tmp_path / "initial" / "mine").touch()
    with pytest.raises(
        ModelError, match=r"initial is a folder, and .* must put a link.* there; rename"
    ):
        initial(RANDOM, store.template, tmp_path)
    assert (tmp_path / "initial" / "mine").is_file()


def test_workers_refuse_a_model_that_was_replaced_all_alike(
    tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    task = tiny_task(tmp_path, make_store)
    other = {"architecture": ARCHITECTURE, "seed": 1}
    weights = tiny_task(tmp_path, make_store, model=other).weights
    assert weights != task.weights
    found = run_workers("start_with_another_model", [replace(task, weights=weights)], tmp_path)
    assert found[0] == found[1]
    assert f"from a model with fingerprint {weights[:12]!r}" in found[0]
    assert "something replaced it" in found[0]


def test_a_folder_that_fits_is_used_in_place(store: TokenStore, tmp_path: Path) -> None:
    folder = initial(RANDOM, store.template, tmp_path, "exported")
    assert initial(ModelConfig(path=folder.name), store.template, tmp_path) == folder
    assert not (tmp_path / "initial").exists()


def test_a_pretrained_folder_that_fits_is_linked_beside_the_template(
    store: TokenStore, tmp_path: Path
) -> None:
    source = initial(RANDOM, store.template, tmp_path, "pretrained")
    for file in ("template.json", "initial.json"):
        (source / file).unlink()
    folder = initial(ModelConfig(path=source.name), store.template, tmp_path)
    assert (folder / "model.safetensors").resolve() == source / "model.safetensors"
    assert Template.verify(folder).fingerprint == store.template.fingerprint
    assert weights_fingerprint(folder) == weights_fingerprint(source)
    assert not (source / "template.json").exists()


def test_a_pretrained_vocabulary_grows_by_the_control_tokens(
    shared_data: Path, tmp_path: Path
) -> None:
    source = shared_data / "stories260k"
    template = load_tokenizer(str(source))
    folder = initial(ModelConfig(path=str(source)), template, tmp_path)
    old, new = (AutoModelForCausalLM.from_pretrained(path) for path in (source, folder))
    before, after = (model.get_input_embeddings().weight for model in (old, new))
    assert (len(before), len(after)) == (512, 516)
    assert torch.equal(after[:512], before)
    assert new.get_output_embeddings().weight is after
    mean, spread = before.mean(0), before.std(0)
    assert ((after[512:] - mean).abs() < 0.5 * spread).all()
    assert len({tuple(row) for row in after[512:].tolist()}) == 4
    tokens = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(new(tokens).logits[..., :512], old(tokens).logits)


def test_another_tokenizer_than_the_stores_is_refused(
    store: TokenStore, shared_data: Path, tmp_path: Path
) -> None:
    config = ModelConfig(path=str(shared_data / "stories260k"))
    with pytest.raises(ModelError, match=r"another tokenizer than the token store.*tokenizer.path"):
        initial(config, store.template, tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ModelConfig(path="/no/such"), "model.path '/no/such': there is no such folder"),
        (
            ModelConfig(architecture={**ARCHITECTURE, "hiden_size": 8}),
            r"llama has no key hiden_size \(did you mean hidden_size\?\)",
        ),
        (ModelConfig(architecture={"model_type": "lama"}), r"did you mean llama\?"),
        (ModelConfig(architecture={**ARCHITECTURE, "hidden_size": 18}), "model.architecture: "),
        (ModelConfig(architecture={**ARCHITECTURE, "vocab_size": 8}), "smaller than the"),
    ],
)
def test_a_model_that_cannot_be_is_named(
    config: ModelConfig, message: str, store: TokenStore, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=message):
        initial(config, store.template, tmp_path)


def test_a_folder_without_a_config_is_named(store: TokenStore, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="cannot be read"):
        initial(ModelConfig(path="empty"), store.template, tmp_path)


def test_dropout_is_switched_off(store: TokenStore, tmp_path: Path) -> None:
    architecture = {**ARCHITECTURE, "attention_dropout": 0.5}
    folder = initial(ModelConfig(architecture=architecture), store.template, tmp_path)
    assert json.loads((folder / "config.json").read_text())["attention_dropout"] == 0.5
    policy = load_policy(
        folder,
        deepspeed=None,
        dtype=torch.float32,
        attention="sdpa",
        layout="tree",
        chunk_size_mb=1,
    )
    assert policy.training
    assert policy.model.config.attention_dropout == 0.0


def test_a_model_whose_buffers_no_checkpoint_carries_is_refused() -> None:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "moe_intermediate_size": 16}
    layers = {"num_hidden_layers": 2, "first_k_dense_replace": 1, "n_routed_experts": 4}
    config = AutoConfig.for_model("glm4_moe", **sizes, **layers)
    with pytest.raises(ModelError, match="e_score_correction_bias"):
        check_carried(config)
    check_carried(architecture_config(RANDOM))


def test_no_worker_ever_holds_the_model_under_stage_3(
    tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    tied = {"architecture": {**ARCHITECTURE, "tie_word_embeddings": True}}
    tasks = [
        tiny_task(tmp_path / name, make_store, model=model)
        for name, model in (("plain", {"architecture": ARCHITECTURE}), ("tied", tied))
    ]
    for worker in run_workers("construct", tasks, tmp_path):
        for held in worker:
            assert held["whole"] == 0
            # Half of every parameter, and at most one element of padding in each.
            assert held["model"] / 2 <= held["own"] <= held["model"] / 2 + 30


def test_no_worker_but_the_first_holds_the_model_in_host_memory_while_it_is_loaded(
    tmp_path: Path, make_store: Callable[..., TokenStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    # glibc raises its threshold as large tensors are freed, and keeps holes for the next ones: a
    # quarter of the model here, more or less by chance. What is asked is what the workers hold.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1000000")
    wide = {**ARCHITECTURE, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 8}
    tasks = [
        tiny_task(tmp_path / name, make_store, model={"architecture": architecture})
        for name, architecture in (("tiny", ARCHITECTURE), ("wide", wide))
    ]
    first, second = run_workers("peak_of_loading", tasks, tmp_path, fresh=True)
    for rank, worker in enumerate((first, second)):
        print(f"rank {rank}: " + ", ".join(f"{k} {v / 1e6:.0f} MB" for k, v in worker.items()))
    assert second["model"] > 250e6
    # Its own half, and what is being dealt out; the first also reads the whole model.
    assert second["own"] < second["peak"] < 0.7 * second["model"]
    assert first["peak"] > 1.2 * first["model"]
