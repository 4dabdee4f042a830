"""The recipe of a run, which export needs besides a checkpoint.

    RUN/
      recipe.json   {"job": "dpo", "dtype": "bfloat16", "initial": "/mnt/runs/initial-3f2a",
                     "train_vocabulary": false, "config": {...}}
      model/        config and tokenizer of the trained model

Both are written before the first step. An exported folder also has a recipe.json, with
`initial_weights`, the fingerprint of the run's initial model. Imports neither an engine nor Ray.
"""

import json
from pathlib import Path
from typing import Any

from metaalign.errors import CheckpointError
from metaalign.folders import checkpoints_place, write_whole
from metaalign.template import Template
from metaalign.train.model.loading import load_config_of

RECIPE_FILE = "recipe.json"
MODEL_FOLDER = "model"


def write_recipe(folder: Path, *, initial: str, template: Template, recipe: dict[str, Any]) -> None:
    """Write the recipe and the model's config and tokenizer into the run's folder."""
    load_config_of(initial).save_pretrained(folder / MODEL_FOLDER)
    template.save(folder / MODEL_FOLDER)
    write_whole(folder / RECIPE_FILE, json.dumps(recipe, indent=2) + "\n")


def read_recipe(run_folder: Path) -> dict[str, Any]:
    """The recipe of a run.

    Raises:
        CheckpointError: no run began in this folder.
    """
    try:
        return json.loads((run_folder / RECIPE_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        found = "holds no training run" if run_folder.is_dir() else "does not exist"
        raise CheckpointError(
            f"{run_folder}: the run's folder {found}; run the sft or dpo job first, or set `run`"
        ) from None


def checkpoints_of(run_folder: Path, recipe: dict[str, Any]) -> str:
    """Path or URI of the folder of the run's checkpoints. The run's folder may have been moved."""
    config = recipe["config"]
    return checkpoints_place(run_folder, config["checkpoint"].get("storage"), config["output"])


def kept_before(run_folder: Path) -> str | None:
    """`checkpoints_of` an earlier run in this folder; None if there is none."""
    if not (run_folder / RECIPE_FILE).is_file():
        return None
    return checkpoints_of(run_folder, read_recipe(run_folder))
