"""The evaluate job on real models, a real store, a real Ray and a real MLflow store."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from mlflow import MlflowClient

from metaalign.config import EvaluateConfig
from metaalign.config.evaluate import GenerationConfig
from metaalign.config.prepare import RecipesConfig
from metaalign.config.sections import TrackingConfig
from metaalign.data.recipes.cases import Case, write_cases
from metaalign.errors import ConfigError, DataError, ModelError, TemplateError
from metaalign.evaluate.answering import Answerer
from metaalign.evaluate.inputs import check_models, read_cases
from metaalign.evaluate.suites import ask_models, run_evaluate
from metaalign.examples import Turn
from metaalign.generate.embedded import EmbeddedEngine, Sampling
from metaalign.store.token_store import CASES_FILE, TokenStore
from metaalign.template import prompt_segments
from metaalign.tracking import open_run
from tests.tiny_model import save_tiny_model


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    """A handful of every metric, and one whose text would break a reader of lines."""
    written = write_cases(RecipesConfig(cases=20), seed=0)
    chosen = [case for case in written if case.id.split("-")[1] in ("0", "1", "2")]
    return [*chosen, replace(chosen[0], id="following-odd", user_info="I use\u2028odd\x85lines.")]


@pytest.fixture(scope="module")
def storage(
    tmp_path_factory: pytest.TempPathFactory,
    make_store: Callable[..., TokenStore],
    cases: list[Case],
) -> Path:
    """A store with cases, and two models that share its template."""
    storage = tmp_path_factory.mktemp("storage")
    store = make_store(storage / "store")
    lines = [case.to_json() for case in cases]
    (storage / "store" / CASES_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    for seed, name in enumerate(("initial", "model")):
        save_tiny_model(storage / name, seed=seed, template=store.template)
    return storage


@pytest.fixture(scope="module")
def config(storage: Path) -> EvaluateConfig:
    return EvaluateConfig(
        storage=str(storage),
        models={"before": "initial", "after": "model"},
        generation=GenerationConfig(max_tokens=8, batch_size=4),
    )


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, ignore_reinit_error=True)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("cluster")
def test_the_job_reports_what_the_models_answer(
    config: EvaluateConfig, storage: Path, cases: list[Case]
) -> None:
    with open_run(TrackingConfig(), storage=str(storage), name="evaluate") as run:
        report = run_evaluate(config, run)
    folder = storage / "evaluation"
    assert json.loads((folder / "report.json").read_text()) == report
    assert report["following"]["count"] == sum(case.metric == "following" for case in cases)
    assert report["flip"]["count"] == len({case.pair for case in cases if case.pair})
    assert report["models"] == {"before": "initial", "after": "model"}
    lines = (folder / "answers.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    answers = [json.loads(line) for line in lines]
    asked = [(model, case.id) for model in ("before", "after") for case in cases]
    assert [(answer["model"], answer["id"]) for answer in answers] == asked
    # The rows came back in other hands: each still has its own model's answer to its own prompt.
    for name, own in (("initial", answers[: len(cases)]), ("model", answers[len(cases) :])):
        engine = EmbeddedEngine(storage / name, device="cpu")
        for case, answer in list(zip(cases, own, strict=True))[::5]:
            turns = (Turn("user", case.query),)
            prompt = engine.template.prompt_ids(
                prompt_segments(system_info=case.system_info, user_info=case.user_info, turns=turns)
            )
            (wanted,) = engine.generate([prompt], Sampling(max_tokens=8))
            assert answer["answer"] == engine.template.decode(wanted.tokens)
            assert answer["finish_reason"] == wanted.finish_reason
            assert answer["prompt_tokens"] == len(prompt)
    client = MlflowClient(run.uri)
    metrics = client.get_run(run.id).data.metrics
    assert metrics["eval/after/following_rate"] == report["following"]["after"]
    logged = {entry.path for entry in client.list_artifacts(run.id, "evaluation")}
    assert {"evaluation/report.json", "evaluation/metrics.png"} <= logged


@pytest.mark.usefixtures("cluster")
def test_more_workers_than_processors_are_refused(
    config: EvaluateConfig, cases: list[Case]
) -> None:
    with pytest.raises(ConfigError, match="num_workers: 9 need a CPU each, the cluster has 2"):
        ask_models(cases, config.model_copy(update={"num_workers": 9}))


def test_a_worker_answers_mixed_rows_with_the_right_model(
    config: EvaluateConfig, storage: Path, cases: list[Case]
) -> None:
    rows = [("after", 1), ("before", 0), ("after", 0), ("before", 0)]
    batch = {
        "model": [model for model, _ in rows],
        "case": [number for _, number in rows],
        "text": [cases[number].to_json() for _, number in rows],
    }
    answered = Answerer(config.model_dump(mode="json"))(batch)["answer"]
    assert answered[1] == answered[3]
    for (model, number), answer in zip(rows, answered, strict=True):
        engine = EmbeddedEngine(storage / config.models[model], device="cpu")
        case = cases[number]
        segments = prompt_segments(
            system_info=case.system_info,
            user_info=case.user_info,
            turns=(Turn("user", case.query),),
        )
        (wanted,) = engine.generate([engine.template.prompt_ids(segments)], Sampling(max_tokens=8))
        assert answer == engine.template.decode(wanted.tokens)


def test_a_store_without_cases_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"store: there is no such token store; run the prepare"):
        read_cases(tmp_path / "store")
    with pytest.raises(DataError, match=r"cases\.jsonl is missing: .* prepare it with `recipes`"):
        read_cases(tmp_path)
    file = tmp_path / CASES_FILE
    file.write_text("")
    with pytest.raises(DataError, match="is empty"):
        read_cases(tmp_path)
    file.write_text('{"id": "x"}\n')
    with pytest.raises(DataError, match=r"line 1 is no case \(KeyError.* prepare again"):
        read_cases(tmp_path)


def test_every_missing_model_is_named_at_once(config: EvaluateConfig, storage: Path) -> None:
    template = TokenStore.open(storage / "store").template
    check_models(config, template)
    lost = config.model_copy(update={"models": {"sft": "nothing", "after": "nowhere"}})
    with pytest.raises(ModelError) as caught:
        check_models(lost, template)
    assert "models.sft: " in str(caught.value)
    assert "models.after: " in str(caught.value)


def test_a_model_with_another_template_is_refused(
    config: EvaluateConfig, storage: Path, tmp_path: Path
) -> None:
    save_tiny_model(tmp_path / "other")
    models = {"before": "initial", "after": str(tmp_path / "other")}
    other = config.model_copy(update={"models": models})
    with pytest.raises(TemplateError, match=r"models\.after: .* renders another template"):
        check_models(other, TokenStore.open(storage / "store").template)
