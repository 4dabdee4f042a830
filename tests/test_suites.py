"""The evaluate job on real models, a real store, a real Ray and a real MLflow store."""

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from metaalign.config import EvaluateConfig
from metaalign.config.evaluate import GenerationConfig
from metaalign.config.prepare import RecipesConfig
from metaalign.config.sections import TrackingConfig
from metaalign.data.recipes.cases import Case, write_cases
from metaalign.errors import ConfigError, DataError
from metaalign.evaluate.answering import Answerer
from metaalign.evaluate.suites import ask_models, run_evaluate
from metaalign.examples import Turn
from metaalign.folders import weights_fingerprint
from metaalign.generate.embedded import EmbeddedEngine, Sampling
from metaalign.store.token_store import CASES_FILE, TokenStore
from metaalign.template import prompt_segments
from metaalign.tracking import open_run
from metaalign.train.checkpoints.recipe import RECIPE_FILE
from tests.conftest import tiny_examples
from tests.tiny_model import plain_logprob, save_tiny_model


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


@pytest.mark.usefixtures("ray_cluster")
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
    assert report["held_out"]["reference"] is None, "no model tells what it was trained from"
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


@pytest.mark.usefixtures("ray_cluster")
def test_more_workers_than_processors_are_refused(
    config: EvaluateConfig, cases: list[Case]
) -> None:
    with pytest.raises(
        ConfigError, match="num_workers: 9 workers need a CPU each, but the cluster has 2"
    ):
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


@pytest.mark.usefixtures("ray_cluster")
def test_a_store_of_pairs_alone_is_compared_with_the_start_of_dpo(
    storage: Path, tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    store = make_store(tmp_path / "store")
    for name in ("initial", "model"):
        shutil.copytree(storage / name, tmp_path / name)
    recipe = {"job": "dpo", "initial": str(tmp_path / "initial")}
    recipe["initial_weights"] = weights_fingerprint(tmp_path / "initial")
    (tmp_path / "model" / RECIPE_FILE).write_text(json.dumps(recipe))
    config = EvaluateConfig(storage=str(tmp_path), models={"after": "model"}, num_workers=2)
    with open_run(TrackingConfig(), storage=str(tmp_path), name="evaluate") as run:
        report = run_evaluate(config, run)
    held_out = report["held_out"]
    assert held_out["reference"]["folder"] == str(tmp_path / "initial")
    assert held_out["reference"]["model"] is None, "it is no row of the report"
    # Every number again from the models' own forward, one sequence after the other.
    columns, margins, orders, surprise, targets = store.columns, [], [], 0.0, 0
    for row in np.flatnonzero(columns.split == "held_out").tolist():
        own = slice(*columns.response_start[row : row + 2])
        score = np.nan_to_num(columns.order_score[own], nan=-1.0)
        after, start = (
            [plain_logprob(tmp_path / name, store, row, number) for number in range(len(score))]
            for name in ("model", "initial")
        )
        surprise -= after[int(score.argmax())]
        targets += columns.response_length[own][score.argmax()]
        reward = np.subtract(after, start)
        pairs = itertools.permutations(range(len(score)), 2)
        gaps = [reward[i] - reward[j] for i, j in pairs if score[i] > score[j]]
        margins += [np.mean(gaps)] if gaps else []
        orders += [np.mean(np.sign(gaps) / 2 + 0.5)] if gaps else []
    assert held_out["sft_loss"]["after"] == pytest.approx(surprise / targets, abs=1e-3)
    assert held_out["reward_margin"]["after"] == pytest.approx(np.mean(margins), abs=1e-3)
    assert held_out["pairs_in_order"]["after"] == pytest.approx(np.mean(orders), abs=1e-4)
    assert held_out["pairs_in_order"]["count"] == len(orders) == 8
    files = {path.name for path in (tmp_path / "evaluation").iterdir()}
    assert files == {"report.json", "report.md", "held_out.png"}
    metrics = MlflowClient(run.uri).get_run(run.id).data.metrics
    assert metrics["eval/after/reward_margin"] == held_out["reward_margin"]["after"]
    assert metrics["eval/after/sft_loss"] == held_out["sft_loss"]["after"]


@pytest.mark.usefixtures("ray_cluster")
def test_a_store_without_anything_to_evaluate_on_is_named(
    storage: Path, tmp_path: Path, make_store: Callable[..., TokenStore], config: EvaluateConfig
) -> None:
    training = [replace(each, tags={"split": "train"}) for each in tiny_examples()]
    make_store(tmp_path / "store", training)
    given = config.model_copy(
        update={
            "store": str(tmp_path / "store"),
            "models": {name: str(storage / path) for name, path in config.models.items()},
        }
    )
    with (
        open_run(TrackingConfig(), storage=str(tmp_path), name="evaluate") as run,
        pytest.raises(DataError, match=r"neither held-out examples nor cases.*held_out_ratio"),
    ):
        run_evaluate(given, run)
