"""The evaluate job: measures every model on the held-out examples and on the cases, if any.

    store's held-out examples x models --Ray Data--> log-probabilities --> losses, orders, margins
    store/cases.jsonl         x models --Ray Data--> answers           --> rates

One line of `answers.jsonl`:

    {"model": "after", "id": "flip-3-0", "metric": "flip", "family": "bullets", "kind": "",
     "pair": "flip-3", "system_info": "", "user_info": "I like 2 bullets.",
     "query": "Who wrote Emma?", "wants": [{"family": "bullets", "parameter": "2"}],
     "prompt_tokens": 14, "answer": "- Austen\n- Emma", "finish_reason": "stop", "passed": true}
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data

from metaalign.config import EvaluateConfig, resolve
from metaalign.data.recipes.cases import Case, best_constant, score
from metaalign.errors import ConfigError, ModelError
from metaalign.evaluate.answering import Answerer
from metaalign.evaluate.held_out import HeldOut, held_out_report, holds_pairs, select_held_out
from metaalign.evaluate.inputs import (
    check_models,
    holds_cases,
    nothing_to_evaluate,
    read_cases,
    shared_context,
)
from metaalign.evaluate.rates import build_report
from metaalign.evaluate.reference import choose_reference
from metaalign.evaluate.report import show_report, write_report
from metaalign.evaluate.scoring import Scorer, choose_scoring_layout
from metaalign.steps.plan import Layout
from metaalign.store.token_store import TokenStore
from metaalign.tracking import Run


def run_evaluate(config: EvaluateConfig, run: Run) -> dict[str, Any]:
    """Run the evaluate job.

    Writes report.json, report.md, the plots and, if the store holds cases, answers.jsonl to
    `{storage}/{output}`. Logs these files to `run`, and the metrics `eval/MODEL/METRIC` for the
    held-out examples and `eval/MODEL/METRIC_rate` for the cases.

    Returns:
        The content of report.json.

    Raises:
        DataError: the store is missing, or holds neither cases nor held-out examples that fit the
            models.
        ModelError: a folder is missing or holds no model, or the reference cannot be found.
        TemplateError: a model renders with another template than the store.
        ConfigError: the cluster is too small.
    """
    started = time.monotonic()
    store = TokenStore.open(resolve(config.storage, config.store))
    cases = read_cases(store.path) if holds_cases(store.path) else []
    gpus_per_worker(config.num_workers)
    measured = measure_models(config, store)
    if measured is None and not cases:
        raise nothing_to_evaluate(store)
    run.log_params(config.model_dump(mode="json"))
    answers = list(_scored(cases, ask_models(cases, config))) if cases else []
    report = _rates(cases, answers, list(config.models)) if cases else {}
    if measured is not None:
        report["held_out"] = measured
    report["models"] = dict(config.models)
    report["seconds"] = round(time.monotonic() - started, 1)
    folder = resolve(config.storage, config.output)
    for file in write_report(report, answers, folder):
        run.log_artifact(file, "evaluation")
    run.log_metrics(dict(_curves(report)))
    show_report(report)
    return report


def _rates(
    cases: Sequence[Case], answers: Iterable[Mapping[str, Any]], models: Sequence[str]
) -> dict[str, Any]:
    """The part of the report that is computed from the cases."""
    passed: dict[str, dict[str, bool]] = {name: {} for name in models}
    for answer in answers:
        passed[answer["model"]][answer["id"]] = answer["passed"]
    hidden = [case for case in cases if case.metric == "hidden"]
    return build_report(cases, passed, best_constant=best_constant(hidden) if hidden else None)


def _curves(report: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """(MLflow's metric name, value) of every number of the report."""
    held_out = report.get("held_out", {})
    for model in report["models"]:
        for metric in report.get("intervals", {}):
            yield f"eval/{model}/{metric}_rate", report[metric][model]
        for metric in held_out.get("intervals", {}):
            if held_out[metric][model] is not None:
                yield f"eval/{model}/{metric}", held_out[metric][model]


def measure_models(config: EvaluateConfig, store: TokenStore) -> dict[str, Any] | None:
    """The `held_out` part of the report; None if no held-out example can be measured.

    Raises:
        ModelError: the reference cannot be found, or a model cannot be measured.
        TemplateError: a model or the reference renders with another template than the store.
    """
    reference = choose_reference(config) if holds_pairs(store) else None
    check_models(config, store.template, reference)
    # A folder that has two names, for example through a link, is measured once.
    folders = {
        name: resolve(config.storage, path).resolve() for name, path in config.models.items()
    }
    start = None if reference is None else reference.folder.resolve()
    every = {*folders.values(), *([] if start is None else [start])}
    limits = {
        "context": shared_context(every),
        "examples": config.held_out_examples,
        "seed": config.seed,
    }
    held = select_held_out(store, **limits)
    if held is None:
        return None
    layouts: dict[Path, Layout] = {
        folder: choose_scoring_layout(folder, held) for folder in sorted(every)
    }
    found = _measure(held, layouts, config, limits)
    report = held_out_report(
        held,
        {name: found[folder] for name, folder in folders.items()},
        None if start is None else found[start],
        seed=config.seed,
    )
    if held.ranked is not None:
        names = [name for name, folder in folders.items() if folder == start]
        report["reference"] = reference and {
            "model": names[0] if names else None,
            "folder": str(reference.folder),
            "reason": reference.reason,
        }
    return report


def _measure(
    held: HeldOut,
    layouts: Mapping[Path, Layout],
    config: EvaluateConfig,
    limits: Mapping[str, Any],
) -> dict[Path, np.ndarray]:
    """Folder -> (R,) log-probabilities of the store's responses, in nats; NaN where not measured.

    Raises:
        ModelError: a log-probability is not finite.
    """
    parts = held.parts()
    rows = [
        {"folder": str(folder), "layout": layout, "part": number}
        for folder, layout in layouts.items()
        for number in range(len(parts))
    ]
    arguments = {"store": str(held.store.path), **limits}
    measured = _on_workers(rows, Scorer, arguments, config.num_workers, len(layouts))
    responses = held.store.columns.response_start[-1]
    found = {folder: np.full(responses, np.nan) for folder in layouts}
    for row in measured.take_all():
        values = np.asarray(row["logprobs"], dtype=np.float64)
        if not np.isfinite(values).all():
            raise ModelError(
                f"{row['folder']}: the log-probability of a held-out response is not finite; the "
                "weights are damaged, or training diverged: export an earlier checkpoint"
            )
        found[Path(row["folder"])][held.places(parts[row["part"]])] = values
    return found


def ask_models(cases: Sequence[Case], config: EvaluateConfig) -> list[dict[str, Any]]:
    """Every model's answer to every case, sorted by model, then by case.

    Returns:
        Rows with `model`, `case` (its number), `answer`, `finish_reason` and `prompt_tokens`.

    Raises:
        ConfigError: the cluster has fewer GPUs (without GPUs: CPUs) than `num_workers`.
    """
    rows = [
        {"model": name, "case": number, "text": case.to_json()}
        for name in config.models
        for number, case in enumerate(cases)
    ]
    arguments = {"settings": config.model_dump(mode="json")}
    answered = _on_workers(rows, Answerer, arguments, config.num_workers, len(config.models))
    order = {name: number for number, name in enumerate(config.models)}
    return sorted(answered.take_all(), key=lambda row: (order[row["model"]], row["case"]))


def _on_workers(
    rows: list[dict[str, Any]],
    worker: type,
    arguments: Mapping[str, Any],
    num_workers: int,
    num_models: int,
) -> ray.data.Dataset:
    """Map the rows over a pool of workers. Blocks hold the rows of few models, since a worker loads
    a model again whenever the model changes."""
    return ray.data.from_items(
        rows, override_num_blocks=min(len(rows), num_models * num_workers)
    ).map_batches(
        worker,
        fn_constructor_kwargs=dict(arguments),
        compute=ray.data.ActorPoolStrategy(size=num_workers),
        batch_size=None,
        num_cpus=1,
        num_gpus=gpus_per_worker(num_workers),
    )


def gpus_per_worker(num_workers: int) -> int:
    """1 if the cluster has any GPU, else 0. Starts Ray if it is not running.

    Raises:
        ConfigError: the cluster has fewer GPUs (without GPUs: CPUs) than `num_workers`.
    """
    if not ray.is_initialized():
        ray.init()
    cluster = ray.cluster_resources()
    kind = "GPU" if cluster.get("GPU") else "CPU"
    if cluster.get(kind, 0) < num_workers:
        raise ConfigError(
            f"num_workers: {num_workers} workers need a {kind} each, but the cluster has "
            f"{cluster.get(kind, 0):g}; lower num_workers or add nodes"
        )
    return int(kind == "GPU")


def _scored(cases: Sequence[Case], rows: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """The lines of answers.jsonl: each case with a model's answer and the verdict."""
    for row in rows:
        case = cases[row["case"]]
        fields = {key: value for key, value in asdict(case).items() if key != "question"}
        yield {
            "model": row["model"],
            **fields,
            "prompt_tokens": row["prompt_tokens"],
            "answer": row["answer"],
            "finish_reason": row["finish_reason"],
            "passed": score(case, row["answer"]),
        }
