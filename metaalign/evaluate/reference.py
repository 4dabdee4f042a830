"""Chooses the reference model of the held-out rewards. Loads no model.

An implicit reward is a response's log-probability under a model minus that under the reference.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from metaalign.config import EvaluateConfig, resolve
from metaalign.errors import ModelError
from metaalign.folders import weights_fingerprint
from metaalign.train.checkpoints.recipe import RECIPE_FILE


class ChosenReference(NamedTuple):
    """The reference of a report."""

    folder: Path
    reason: str
    """Why it was chosen, such as "the start of the dpo run that made 'after'"."""


def choose_reference(config: EvaluateConfig) -> ChosenReference | None:
    """The reference according to the settings; None if no model was trained by sft or dpo.

    Raises:
        ModelError: the model that training started from is missing, or its weights changed.
    """
    if config.reference is not None:
        folder = resolve(config.storage, config.reference)
        return ChosenReference(folder, "the model that the setting `reference` names")
    folders = {name: resolve(config.storage, given) for name, given in config.models.items()}
    recipes = {name: recipe_beside(folder) for name, folder in folders.items()}
    trained_by_dpo = _last_of_job(recipes, "dpo")
    if trained_by_dpo is not None:
        return _start_of(trained_by_dpo, recipes[trained_by_dpo], config)
    trained_by_sft = _last_of_job(recipes, "sft")
    if trained_by_sft is None:
        return None
    if trained_by_sft == list(folders)[-1]:
        return _start_of(trained_by_sft, recipes[trained_by_sft], config)
    return ChosenReference(folders[trained_by_sft], "the last model that the sft job trained")


def _last_of_job(recipes: Mapping[str, Mapping[str, Any]], job: str) -> str | None:
    names = [name for name, recipe in recipes.items() if recipe.get("job") == job]
    return names[-1] if names else None


def recipe_beside(folder: Path) -> dict[str, Any]:
    """The recipe that the export job wrote beside a model; empty for other models.

    Raises:
        ModelError: the recipe cannot be read.
    """
    file = folder / RECIPE_FILE
    try:
        recipe = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{file} cannot be read: {error}; export the model again, or set `reference`"
        ) from error
    return recipe if isinstance(recipe, dict) else {}


def _start_of(name: str, recipe: Mapping[str, Any], config: EvaluateConfig) -> ChosenReference:
    """The model that a run started from, at its recorded path or under this storage.

    Raises:
        ModelError: it is missing, or its weights changed.
    """
    recorded = Path(recipe["initial"])
    places = [recorded, Path(config.storage) / recorded.name]
    folder = next((place for place in places if place.is_dir()), None)
    remedy = "restore it, or set `reference` to another model"
    if folder is None:
        raise ModelError(
            f"models.{name}: {recipe['job']} started from {str(recorded)!r}, which no longer "
            f"exists and is needed as the reference; {remedy}"
        )
    if weights_fingerprint(folder) != recipe["initial_weights"]:
        raise ModelError(
            f"models.{name}: {recipe['job']} started from {str(folder)!r}, but its weights have "
            f"changed since; {remedy}"
        )
    return ChosenReference(folder, f"the start of the {recipe['job']} run that made {name!r}")
