"""The export job: a run's checkpoint -> a Hugging Face folder.

    model/
      config.json, model.safetensors, generation_config.json
      tokenizer.json, tokenizer_config.json
      template.json     the template's fingerprint and golden renderings
      recipe.json       the run's job and settings, and the model that it started from
      README.md         the model card, with the run's numbers

Knows no Ray.
"""

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from metaalign.config import ExportConfig, resolve
from metaalign.config.sections import LoraConfig
from metaalign.errors import CheckpointError
from metaalign.folders import Folder, checkpoints_place
from metaalign.template import TEMPLATE_FILE, Template
from metaalign.tracking import Run
from metaalign.train.checkpoints.checkpoint_format import iterate_weights, read_manifest
from metaalign.train.checkpoints.history import choose_checkpoint
from metaalign.train.loop.results import read_result, write_json
from metaalign.train.model.adapters import add_adapters, merge_adapters
from metaalign.train.model.loading import check_weights, load_config_of

RECIPE_FILE = "recipe.json"
"""In a run's folder, what export needs beside the checkpoints: written before the first step. In an
exported folder the same, and `initial_weights`, the fingerprint of the model that the run started
from."""

MODEL_FOLDER = "model"
"""In a run's folder: config and tokenizer of what is trained."""

CARD_FILE = "README.md"

logger = logging.getLogger(__name__)


def write_recipe(folder: Path, *, initial: str, template: Template, recipe: dict[str, Any]) -> None:
    """Keep in the run's folder what the model is, apart from its weights."""
    load_config_of(initial).save_pretrained(folder / MODEL_FOLDER)
    template.save(folder / MODEL_FOLDER)
    write_json(folder / RECIPE_FILE, recipe)


def run_export(config: ExportConfig, run: Run | None = None) -> Path:
    """Write the folder in one piece, and register it where the settings name a model.

    Raises:
        CheckpointError: there is no such run or checkpoint, it is damaged, or `output` names a
            folder that holds something else.
        TemplateError: the run's tokenizer was changed.
        ModelError: the model that adapters were trained on was replaced.
    """
    source = resolve(config.storage, config.run)
    target = resolve(config.storage, config.output)
    recipe = _read_recipe(source)
    place = _checkpoints(source, recipe)
    checkpoint = choose_checkpoint(place, config.checkpoint)
    if checkpoint is None:
        raise CheckpointError(
            f"{place}: there is no complete checkpoint of {config.run}; run the sft or dpo job "
            "first, or set `run`"
        )
    _check_target(source, target)
    template = Template.verify(source / MODEL_FOLDER)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    if recipe["config"]["model"]["lora"] is None:
        _save_model(checkpoint, source / MODEL_FOLDER, getattr(torch, recipe["dtype"]), partial)
    else:
        _merged(checkpoint, recipe).save_pretrained(partial)
    _generation_config(template, partial)
    template.save(partial)
    _keep_recipe(recipe, checkpoint, partial)
    numbers = _numbers(source, checkpoint)
    (partial / CARD_FILE).write_text(_card(target.name, recipe, numbers), encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    os.replace(partial, target)
    logger.info("exported %s to %s", checkpoint, target)
    if run is not None:
        run.log_artifact(target / CARD_FILE)
        if config.tracking.registered_model is not None:
            tracking = config.tracking
            run.register_model(target, config.tracking.registered_model, tracking.alias)
    return target


def _read_recipe(source: Path) -> dict[str, Any]:
    try:
        return json.loads((source / RECIPE_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        found = "is of no training run" if source.is_dir() else "does not exist"
        raise CheckpointError(
            f"{source}: the run's folder {found}; run the sft or dpo job first, or set `run`"
        ) from None


def kept_before(source: Path) -> str | None:
    """Where the checkpoints of the run that began in a folder are kept; None where none did."""
    return _checkpoints(source, _read_recipe(source)) if (source / RECIPE_FILE).is_file() else None


def _checkpoints(source: Path, recipe: dict[str, Any]) -> str:
    """Where the run's checkpoints are kept; the run's folder may have been moved since."""
    config = recipe["config"]
    return checkpoints_place(source, config["checkpoint"].get("storage"), config["output"])


def _check_target(source: Path, target: Path) -> None:
    """Replace nothing but what an export wrote."""
    exported = all((target / name).is_file() for name in (TEMPLATE_FILE, CARD_FILE))
    if target == source or (target.exists() and not exported):
        raise CheckpointError(
            f"{target}: `output` names a folder that holds no exported model, and it would be "
            "replaced; give another"
        )


def _save_model(checkpoint: Folder, model_folder: Path, dtype: torch.dtype, folder: Path) -> None:
    """Write config and weights. The model is held once, in `dtype`, beside one float32 tensor."""
    config = load_config_of(model_folder)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    shapes = {f"model.{name}": list(value.shape) for name, value in model.named_parameters()}
    if read_manifest(checkpoint)["shapes"] != shapes:
        raise CheckpointError(f"{checkpoint}: its tensors are not those of {model_folder}")
    weights = {
        name.removeprefix("model."): value.to(dtype) for name, value in iterate_weights(checkpoint)
    }
    model.save_pretrained(folder, state_dict=weights)


def _merged(checkpoint: Folder, recipe: dict[str, Any]) -> Any:
    """The model that adapters were trained on, with the checkpoint's merged into it."""
    initial, settings = recipe["initial"], recipe["config"]["model"]
    if not Path(initial).is_dir():
        raise CheckpointError(
            f"{checkpoint}: its adapters belong to the model in {initial}, which is gone"
        )
    check_weights(initial, read_manifest(checkpoint)["identity"]["model"])
    model = AutoModelForCausalLM.from_pretrained(initial, dtype=getattr(torch, recipe["dtype"]))
    tuner = add_adapters(
        model,
        LoraConfig.model_validate(settings["lora"]),
        train_vocabulary=recipe["train_vocabulary"],
        seed=settings["seed"],
    )
    weights = iterate_weights(checkpoint)
    return merge_adapters(tuner, ((name.removeprefix("model."), value) for name, value in weights))


def _keep_recipe(recipe: dict[str, Any], checkpoint: Folder, folder: Path) -> None:
    """Tell in the exported folder what the model was trained from: its reference."""
    weights = read_manifest(checkpoint)["identity"]["model"]
    write_json(folder / RECIPE_FILE, {**recipe, "initial_weights": weights})


def _generation_config(template: Template, folder: Path) -> None:
    """Servers stop at the template's end token and pad with it."""
    GenerationConfig(
        bos_token_id=template.bos_id, eos_token_id=template.eos_id, pad_token_id=template.eos_id
    ).save_pretrained(folder)


def _numbers(source: Path, checkpoint: Folder) -> dict[str, Any]:
    """What is known of a checkpoint: the run's result where it is the last one."""
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
    """The model card: what it is, how it was trained, what was measured."""
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
