"""What the evaluate job refuses before it loads a model."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from metaalign.config import EvaluateConfig
from metaalign.errors import DataError, ModelError, TemplateError
from metaalign.evaluate.inputs import check_models, nothing_to_evaluate, read_cases
from metaalign.evaluate.reference import ChosenReference
from metaalign.store.token_store import CASES_FILE, TokenStore
from tests.conftest import tiny_examples
from tests.tiny_model import save_tiny_model


@pytest.fixture(scope="module")
def storage(
    tmp_path_factory: pytest.TempPathFactory, make_store: Callable[..., TokenStore]
) -> Path:
    """A store, and two models that share its template."""
    storage = tmp_path_factory.mktemp("storage")
    store = make_store(storage / "store")
    for seed, name in enumerate(("initial", "model")):
        save_tiny_model(storage / name, seed=seed, template=store.template)
    return storage


@pytest.fixture(scope="module")
def config(storage: Path) -> EvaluateConfig:
    return EvaluateConfig(storage=str(storage), models={"before": "initial", "after": "model"})


def test_a_store_without_cases_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"store: the token store does not exist; run the prepare"):
        read_cases(tmp_path / "store")
    with pytest.raises(
        DataError, match=r"cases\.jsonl is missing: .* prepare it with the section `recipes`"
    ):
        read_cases(tmp_path)
    file = tmp_path / CASES_FILE
    file.write_text("")
    with pytest.raises(DataError, match="is empty"):
        read_cases(tmp_path)
    file.write_text('{"id": "x"}\n')
    with pytest.raises(DataError, match=r"line 1 is not a case \(KeyError.* prepare again"):
        read_cases(tmp_path)


def test_every_missing_model_is_named_at_once(config: EvaluateConfig, storage: Path) -> None:
    template = TokenStore.open(storage / "store").template
    check_models(config, template)
    lost = config.model_copy(update={"models": {"sft": "nothing", "after": "nowhere"}})
    with pytest.raises(ModelError) as caught:
        check_models(lost, template)
    assert "models.sft: " in str(caught.value)
    assert "models.after: " in str(caught.value)


def test_a_missing_model_is_told_with_the_models_that_there_are(
    config: EvaluateConfig, storage: Path
) -> None:
    template = TokenStore.open(storage / "store").template
    lost = config.model_copy(update={"models": {"sft": "sft_model", "after": "model"}})
    with pytest.raises(ModelError) as caught:
        check_models(lost, template)
    text = str(caught.value)
    assert f"models.sft: {storage}/sft_model: the model folder does not exist" in text
    assert "the storage holds the model folders initial, model;" in text
    assert text.endswith("such as models='{after: model}'")


def test_a_reference_is_checked_with_the_models(config: EvaluateConfig, storage: Path) -> None:
    template = TokenStore.open(storage / "store").template
    reference = ChosenReference(storage / "gone", "the model that the setting names")
    with pytest.raises(ModelError, match=r"reference: .*gone: the model folder does not exist"):
        check_models(config, template, reference)


def test_what_cannot_be_measured_is_told_from_what_is_not_held_out(
    storage: Path, tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    store = TokenStore.open(storage / "store")
    assert "none of its 12 held-out examples fits" in str(nothing_to_evaluate(store))
    training = [replace(each, tags={"split": "train"}) for each in tiny_examples(4)]
    empty = make_store(tmp_path / "empty", training)
    assert "neither held-out examples nor cases" in str(nothing_to_evaluate(empty))
    assert "held_out_ratio above 0" in str(nothing_to_evaluate(empty))


def test_a_model_with_another_template_is_refused(
    config: EvaluateConfig, storage: Path, tmp_path: Path
) -> None:
    save_tiny_model(tmp_path / "other")
    models = {"before": "initial", "after": str(tmp_path / "other")}
    other = config.model_copy(update={"models": models})
    with pytest.raises(TemplateError, match=r"models\.after: .* renders another template"):
        check_models(other, TokenStore.open(storage / "store").template)
