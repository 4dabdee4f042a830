"""Which model rewards are measured against, by what the export job noted of each."""

import json
import shutil
from pathlib import Path

import pytest

from metaalign.config import EvaluateConfig
from metaalign.errors import ModelError
from metaalign.evaluate.reference import choose_reference
from metaalign.folders import weights_fingerprint
from metaalign.train.checkpoints.recipe import RECIPE_FILE


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """base -sft-> sft_model -dpo-> model, and a model from elsewhere."""
    for name in ("base", "sft_model", "model", "elsewhere"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_text(name)
    note(tmp_path, "sft_model", job="sft", start="base")
    note(tmp_path, "model", job="dpo", start="sft_model")
    return tmp_path


def note(storage: Path, name: str, *, job: str, start: str) -> None:
    weights = weights_fingerprint(storage / start)
    recipe = {"job": job, "initial": str(storage / start), "initial_weights": weights}
    (storage / name / RECIPE_FILE).write_text(json.dumps(recipe))


def chosen(storage: Path, *folders: str, reference: str | None = None) -> Path | None:
    config = EvaluateConfig(
        storage=str(storage), models={name: name for name in folders}, reference=reference
    )
    found = choose_reference(config)
    return found and found.folder


def test_it_is_the_model_that_dpo_started_from(storage: Path) -> None:
    assert chosen(storage, "model") == storage / "sft_model"
    assert chosen(storage, "base", "model", "sft_model") == storage / "sft_model"


def test_without_a_dpo_model_it_is_the_sft_model_that_something_followed(storage: Path) -> None:
    assert chosen(storage, "sft_model", "elsewhere") == storage / "sft_model"
    assert chosen(storage, "base", "sft_model") == storage / "base", "nothing followed it"


def test_models_from_elsewhere_have_none_but_the_one_that_is_named(storage: Path) -> None:
    assert chosen(storage, "base", "elsewhere") is None
    assert chosen(storage, "base", "elsewhere", reference="base") == storage / "base"
    assert chosen(storage, "model", reference=str(storage / "base")) == storage / "base"


def test_a_storage_that_moved_still_holds_it(storage: Path) -> None:
    moved = storage / "moved"
    moved.mkdir()
    for name in ("model", "sft_model"):
        shutil.move(storage / name, moved / name)
    assert chosen(moved, "model") == moved / "sft_model"


def test_a_start_that_is_gone_or_another_is_named_with_the_remedy(storage: Path) -> None:
    (storage / "sft_model" / "model.safetensors").write_text("trained anew")
    with pytest.raises(
        ModelError, match=r"models\.model: dpo started .* weights have changed .* `reference`"
    ):
        chosen(storage, "model")
    assert chosen(storage, "model", reference="base") == storage / "base"
    shutil.rmtree(storage / "sft_model")
    with pytest.raises(
        ModelError, match=r"models\.model: dpo started .* no longer exists.* `reference`"
    ):
        chosen(storage, "model")


def test_a_note_that_cannot_be_read_is_named(storage: Path) -> None:
    (storage / "model" / RECIPE_FILE).write_text('{"job": "dp')
    with pytest.raises(ModelError, match=r"recipe\.json cannot be read: .*export the model again"):
        chosen(storage, "model")
