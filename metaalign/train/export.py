"""The export job, which writes a run's checkpoint as a Hugging Face folder.

    model/
      config.json, model.safetensors, generation_config.json
      tokenizer.json, tokenizer_config.json
      template.json     the template's fingerprint and golden renderings
      recipe.json       the run's job and settings, and its initial model
      README.md         the model card, with the run's metrics

Does not import Ray.
"""

import json
import logging
from pathlib import Path
from typing import Any

import torch

from metaalign.config import ExportConfig, resolve
from metaalign.config.sections import LoraConfig
from metaalign.errors import CheckpointError
from metaalign.folders import Folder, whole_folder
from metaalign.template import TEMPLATE_FILE, Template
from metaalign.tracking import Run
from metaalign.train.checkpoints.checkpoint_format import iterate_weights, read_manifest
from metaalign.train.checkpoints.history import choose_checkpoint
from metaalign.train.checkpoints.recipe import (
    MODEL_FOLDER,
    RECIPE_FILE,
    checkpoints_of,
    read_recipe,
)
from metaalign.train.loop.results import read_result
from metaalign.train.model.loading import check_weights
from metaalign.train.model.writing import write_generation_config, write_merged, write_model

CARD_FILE = "README.md"

logger = logging.getLogger(__name__)


def run_export(config: ExportConfig, run: Run | None = None) -> Path:
    """Write the folder, whole or not at all, and register it if `tracking.registered_model` is set.

    Raises:
        CheckpointError: the run or checkpoint does not exist or is damaged, or `output` is a folder
            that export did not write.
        TemplateError: the run's tokenizer was changed.
        ModelError: the initial model of the adapters was replaced.
    """
    source = resolve(config.storage, config.run)
    target = resolve(config.storage, config.output)
    recipe = read_recipe(source)
    place = checkpoints_of(source, recipe)
    checkpoint = choose_checkpoint(place, config.checkpoint)
    if checkpoint is None:
        raise CheckpointError(
            f"{place}: there is no complete checkpoint of {config.run}; run the sft or dpo job "
            "first, or set `run`"
        )
    _check_target(source, target)
    template = Template.verify(source / MODEL_FOLDER)
    if run is not None:
        run.log_params(config.model_dump(mode="json"))
    card = _card(target.name, recipe, _numbers(source, checkpoint))
    with whole_folder(target) as unfinished:
        _write_weights(unfinished, source, checkpoint, recipe)
        write_generation_config(unfinished, template)
        template.save(unfinished)
        _keep_recipe(recipe, checkpoint, unfinished)
        (unfinished / CARD_FILE).write_text(card, encoding="utf-8")
    logger.info("exported %s to %s", checkpoint, target)
    if run is not None:
        run.log_artifact(target / CARD_FILE)
        if config.tracking.registered_model is not None:
            tracking = config.tracking
            run.register_model(target, config.tracking.registered_model, tracking.alias)
    return target


def _check_target(source: Path, target: Path) -> None:
    """Check that `target` does not exist or holds an exported model, since it is replaced."""
    exported = all((target / name).is_file() for name in (TEMPLATE_FILE, CARD_FILE))
    if target == source or (target.exists() and not exported):
        raise CheckpointError(
            f"{target}: `output` names a folder that holds no exported model, and export would "
            "replace it; give another"
        )


def _write_weights(folder: Path, source: Path, checkpoint: Folder, recipe: dict[str, Any]) -> None:
    weights, manifest = iterate_weights(checkpoint), read_manifest(checkpoint)
    settings, dtype = recipe["config"]["model"], getattr(torch, recipe["dtype"])
    if settings["lora"] is None:
        place, shapes = source / MODEL_FOLDER, manifest["shapes"]
        write_model(folder, weights, config_folder=place, shapes=shapes, dtype=dtype)
        return
    initial = recipe["initial"]
    if not Path(initial).is_dir():
        raise CheckpointError(
            f"{checkpoint}: its adapters belong to the model in {initial}, which is gone"
        )
    check_weights(initial, manifest["identity"]["model"])
    write_merged(
        folder,
        weights,
        initial=initial,
        lora=LoraConfig.model_validate(settings["lora"]),
        train_vocabulary=recipe["train_vocabulary"],
        seed=settings["seed"],
        dtype=dtype,
    )


def _keep_recipe(recipe: dict[str, Any], checkpoint: Folder, folder: Path) -> None:
    """Write the recipe into the exported folder, with the fingerprint of the initial model."""
    kept = {**recipe, "initial_weights": read_manifest(checkpoint)["identity"]["model"]}
    (folder / RECIPE_FILE).write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def _numbers(source: Path, checkpoint: Folder) -> dict[str, Any]:
    """Metrics of a checkpoint: the run's result if it is the last one, else its step and metric."""
    manifest = read_manifest(checkpoint)
    result = read_result(source) or {}
    if result.get("steps") == manifest["step"]:
        return result
    best = manifest["progress"].get("best") or {}
    numbers = {"steps": manifest["step"]}
    if best.get("step") == manifest["step"]:
        numbers[f"held_out.{best['metric']}"] = best["value"]
    return numbers


def _card(name: str, recipe: dict[str, Any], result: dict[str, Any]) -> str:
    """The model card: description, metrics and settings."""
    held_out = result.get("held_out") or {}
    rows = [
        (metric, held_out["before"].get(metric), value)
        for metric, value in (held_out.get("after") or {}).items()
    ]
    table = ["| held out | before | after |", "|---|---|---|"]
    table += [f"| {metric} | {_number(a)} | {_number(b)} |" for metric, a, b in rows]
    order = result.get("pair_order")
    shown = ("steps", "seconds", "tokens_per_second", "optimizer", "workers", "parameters")
    numbers = {
        key: value for key, value in result.items() if key in shown or key.startswith("held_out.")
    }
    parts = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [metaalign]\n---",
        f"# {name}",
        f"Trained by metaalign's {recipe['job']} job. It follows the preferences that its System "
        "Info and User Info state; `template.json` says how they are written.",
        "\n".join(f"- {key}: {_number(value)}" for key, value in numbers.items()),
        "\n".join(table) if rows else "",
        ""
        if order is None
        else f"Held-out pairs in the right order: {order['accuracy']:.3f} "
        f"({order['low']:.3f} to {order['high']:.3f} at 95%, {order['count']} examples).",
        "## Settings\n\n```json\n" + json.dumps(recipe["config"], indent=2) + "\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else f"{value}"
