"""The export job: a run's newest checkpoint -> a Hugging Face folder.

    model/
      config.json, model.safetensors, generation_config.json
      tokenizer.json, tokenizer_config.json
      template.json     the template's fingerprint and golden renderings
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
from metaalign.errors import CheckpointError
from metaalign.template import TEMPLATE_FILE, Template
from metaalign.tracking import Run
from metaalign.train.checkpoints import load_weights, newest_checkpoint, read_manifest
from metaalign.train.models import load_config_of
from metaalign.train.results import read_result

RECIPE_FILE = "recipe.json"
"""What export needs of a run beside its checkpoints: written before the first step."""

MODEL_FOLDER = "model"
"""In a run's folder: config and tokenizer of what is trained."""

logger = logging.getLogger(__name__)


def write_recipe(folder: Path, *, initial: str, template: Template, recipe: dict[str, Any]) -> None:
    """Keep in the run's folder what the model is, apart from its weights."""
    load_config_of(initial).save_pretrained(folder / MODEL_FOLDER)
    template.save(folder / MODEL_FOLDER)
    (folder / RECIPE_FILE).write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")


def run_export(config: ExportConfig, run: Run | None = None) -> Path:
    """Write the folder in one piece, and register it where the settings name a model.

    Raises:
        CheckpointError: there is no such run, it has no complete checkpoint, or `output` names
            a folder that holds something else.
        TemplateError: the run's tokenizer was changed.
    """
    source = resolve(config.storage, config.run)
    target = resolve(config.storage, config.output)
    checkpoint = newest_checkpoint(source)
    if checkpoint is None:
        found = "holds no complete checkpoint" if source.is_dir() else "does not exist"
        raise CheckpointError(
            f"{source}: the run's folder {found}; run the sft or dpo job first, or set `run`"
        )
    _check_target(source, target)
    template = Template.verify(source / MODEL_FOLDER)
    recipe = json.loads((source / RECIPE_FILE).read_text(encoding="utf-8"))
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    _save_model(checkpoint, source / MODEL_FOLDER, recipe["dtype"], partial)
    _generation_config(template, partial)
    template.save(partial)
    result = read_result(source) or {"steps": read_manifest(checkpoint)["step"]}
    (partial / "README.md").write_text(_card(target.name, recipe, result), encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    os.replace(partial, target)
    logger.info("exported %s to %s", checkpoint, target)
    if run is not None:
        run.log_artifact(target / "README.md")
        if config.tracking.registered_model is not None:
            tracking = config.tracking
            run.register_model(target, config.tracking.registered_model, tracking.alias)
    return target


def _check_target(source: Path, target: Path) -> None:
    """Replace nothing but what an export wrote."""
    if target == source or (target.exists() and not (target / TEMPLATE_FILE).is_file()):
        raise CheckpointError(
            f"{target}: `output` names a folder that holds no exported model, and it would be "
            "replaced; give another"
        )


def _save_model(checkpoint: Path, model_folder: Path, dtype: str, folder: Path) -> None:
    config = load_config_of(model_folder)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    weights = load_weights(checkpoint)
    parameters = {f"model.{name}": value for name, value in model.named_parameters()}
    if set(parameters) != set(weights):
        raise CheckpointError(f"{checkpoint}: its tensors are not those of {model_folder}")
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(weights[name])
    model.to(getattr(torch, dtype)).save_pretrained(folder)


def _generation_config(template: Template, folder: Path) -> None:
    """Servers stop at the template's end token and pad with it."""
    GenerationConfig(
        bos_token_id=template.bos_id, eos_token_id=template.eos_id, pad_token_id=template.eos_id
    ).save_pretrained(folder)


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
    numbers = {
        key: result[key]
        for key in ("steps", "seconds", "tokens_per_second", "optimizer", "workers", "parameters")
        if key in result
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
