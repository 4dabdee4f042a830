"""Asks every model every held-out case in one pass, and scores the answers by rule.

    store/cases.jsonl x models --Ray Data--> answers --> rates --> report

One line of `answers.jsonl`:

    {"model": "after", "id": "flip-3-0", "metric": "flip", "family": "bullets", "kind": "",
     "pair": "flip-3", "system_info": "", "user_info": "I like 2 bullets.",
     "query": "Who wrote Emma?", "wants": [{"family": "bullets", "parameter": "2"}],
     "prompt_tokens": 14, "answer": "- Austen\n- Emma", "finish_reason": "stop", "passed": true}
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import ray.data

from metaalign.config import EvaluateConfig, resolve
from metaalign.data.recipes.cases import Case, best_constant, score
from metaalign.errors import ConfigError, DataError, ModelError, TemplateError
from metaalign.evaluate.rates import build_report
from metaalign.evaluate.report import show_report, write_report
from metaalign.examples import Turn
from metaalign.generate.embedded import EmbeddedEngine, Sampling, check_folder
from metaalign.store.token_store import CASES_FILE, TokenStore
from metaalign.template import Template, prompt_segments
from metaalign.tracking import Run


def run_evaluate(config: EvaluateConfig, run: Run) -> dict[str, Any]:
    """The evaluate job: ask, score, report.

    Writes report.json, report.md, answers.jsonl and the plots to `{storage}/{output}`, and logs
    them and `eval/MODEL/METRIC_rate` to `run`.

    Returns:
        The report, as report.json holds it.

    Raises:
        DataError: the store is missing or holds no cases.
        ModelError: a model's folder is missing or no model.
        TemplateError: a model renders another template than the store.
        ConfigError: the cluster is too small.
    """
    started = time.monotonic()
    store = resolve(config.storage, config.store)
    cases = read_cases(store)
    check_models(config, TokenStore.open(store).template)
    answers = list(_scored(cases, ask_models(cases, config)))
    passed: dict[str, dict[str, bool]] = {name: {} for name in config.models}
    for answer in answers:
        passed[answer["model"]][answer["id"]] = answer["passed"]
    hidden = [case for case in cases if case.metric == "hidden"]
    report = build_report(cases, passed, best_constant=best_constant(hidden) if hidden else None)
    report["models"] = dict(config.models)
    report["seconds"] = round(time.monotonic() - started, 1)
    folder = resolve(config.storage, config.output)
    for file in write_report(report, answers, folder):
        run.log_artifact(file, "evaluation")
    run.log_metrics(
        {
            f"eval/{model}/{metric}_rate": report[metric][model]
            for metric in report["intervals"]
            for model in config.models
        }
    )
    show_report(report)
    return report


def read_cases(store: Path) -> list[Case]:
    """The held-out cases of a store.

    Raises:
        DataError: names the file, and the remedy.
    """
    file = store / CASES_FILE
    if not store.is_dir():
        raise DataError(f"{store}: there is no such token store; run the prepare job first")
    if not file.is_file():
        raise DataError(
            f"{file} is missing: the store holds no cases; prepare it with `recipes`, whose "
            "preferences a rule can check"
        )
    lines = file.read_text(encoding="utf-8").split("\n")
    cases = []
    for number, line in enumerate(lines, start=1):
        try:
            cases += [Case.from_json(line)] if line else []
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"{file}: line {number} is no case ({error!r}): {line[:200]!r}; prepare again"
            ) from error
    if not cases:
        raise DataError(f"{file} is empty; prepare the store again with recipes.cases above 0")
    return cases


def check_models(config: EvaluateConfig, template: Template) -> None:
    """See that every model is there and renders as the store does; every problem at once.

    Raises:
        ModelError, TemplateError: name the model, its folder and the remedy.
    """
    problems: list[ModelError | TemplateError] = []
    for name, given in config.models.items():
        folder = resolve(config.storage, given)
        try:
            found = Template.load(check_folder(folder)).fingerprint
            if found != template.fingerprint:
                raise TemplateError(
                    f"{folder}: renders another template ({found}) than the store "
                    f"({template.fingerprint}); evaluate with the store that it was trained on"
                )
        except (ModelError, TemplateError) as error:
            problems.append(type(error)(f"models.{name}: {error}"))
    if problems:
        raise type(problems[0])("\n  ".join(map(str, problems)))


def ask_models(cases: Sequence[Case], config: EvaluateConfig) -> list[dict[str, Any]]:
    """Every model's answer to every case, in the order of models and cases.

    Returns:
        Rows of model, case (its number), answer, finish_reason and prompt_tokens.

    Raises:
        ConfigError: the cluster has fewer processors than `num_workers`.
    """
    gpus = gpus_per_worker(config.num_workers)
    rows = [
        {"model": name, "case": number, "text": case.to_json()}
        for name in config.models
        for number, case in enumerate(cases)
    ]
    answered = ray.data.from_items(
        rows, override_num_blocks=min(len(rows), len(config.models) * config.num_workers)
    ).map_batches(
        Answerer,
        fn_constructor_args=(config.model_dump(mode="json"),),
        compute=ray.data.ActorPoolStrategy(size=config.num_workers),
        batch_size=None,
        num_cpus=1,
        num_gpus=gpus,
    )
    order = {name: number for number, name in enumerate(config.models)}
    return sorted(answered.take_all(), key=lambda row: (order[row["model"]], row["case"]))


def gpus_per_worker(num_workers: int) -> int:
    """1 where the cluster has any GPU, else 0.

    Raises:
        ConfigError: the cluster has fewer processors than `num_workers`.
    """
    if not ray.is_initialized():
        ray.init()
    cluster = ray.cluster_resources()
    kind = "GPU" if cluster.get("GPU") else "CPU"
    if cluster.get(kind, 0) < num_workers:
        raise ConfigError(
            f"num_workers: {num_workers} need a {kind} each, the cluster has "
            f"{cluster.get(kind, 0):g}; lower num_workers or add nodes"
        )
    return int(kind == "GPU")


class Answerer:
    """A worker of Ray Data that holds one model at a time."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._config = EvaluateConfig.model_validate(settings)
        self._name = ""
        self._engine: EmbeddedEngine | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        names = [str(name) for name in batch["model"]]
        cases = [Case.from_json(str(text)) for text in batch["text"]]
        answers: list[tuple[str, str, int]] = [("", "", 0)] * len(cases)
        for name in dict.fromkeys(names):
            own = [row for row, other in enumerate(names) if other == name]
            for row, answer in zip(
                own, self._answer(name, [cases[row] for row in own]), strict=True
            ):
                answers[row] = answer
        texts, reasons, lengths = (list(column) for column in zip(*answers, strict=True))
        return {
            "model": names,
            "case": batch["case"],
            "answer": texts,
            "finish_reason": reasons,
            "prompt_tokens": lengths,
        }

    def _answer(self, name: str, cases: Sequence[Case]) -> Iterable[tuple[str, str, int]]:
        """(answer, finish reason, prompt tokens) of each case; equal prompts are asked once."""
        engine = self._load(name)
        prompts = [
            tuple(
                engine.template.prompt_ids(
                    prompt_segments(
                        system_info=case.system_info,
                        user_info=case.user_info,
                        turns=(Turn("user", case.query),),
                    )
                )
            )
            for case in cases
        ]
        distinct = list(dict.fromkeys(prompts))
        sampling = Sampling(max_tokens=self._config.generation.max_tokens)
        answers = dict(zip(distinct, engine.generate(distinct, sampling), strict=True))
        for prompt in prompts:
            tokens, finish_reason = answers[prompt]
            yield engine.template.decode(tokens), finish_reason, len(prompt)

    def _load(self, name: str) -> EmbeddedEngine:
        if self._engine is None or name != self._name:
            self._engine = None  # Two models at once might not fit.
            folder = resolve(self._config.storage, self._config.models[name])
            self._engine = EmbeddedEngine(folder, batch_size=self._config.generation.batch_size)
            self._name = name
        return self._engine


def _scored(cases: Sequence[Case], rows: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """The lines of answers.jsonl."""
    for row in rows:
        case = cases[row["case"]]
        asked = {key: value for key, value in asdict(case).items() if key != "question"}
        yield {
            "model": row["model"],
            **asked,
            "prompt_tokens": row["prompt_tokens"],
            "answer": row["answer"],
            "finish_reason": row["finish_reason"],
            "passed": score(case, row["answer"]),
        }
