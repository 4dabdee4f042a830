"""Which model the held-out rewards are measured against. Knows no weights and no Ray.

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
    """Why it is this one, as "the start of the dpo run that made 'after'"."""


def choose_reference(config: EvaluateConfig) -> ChosenReference | None:
    """The reference that the settings mean; None where nothing is known of any model's start.

    Raises:
        ModelError: the model that training started from is gone, or was replaced.
    """
    if config.reference is not None:
        folder = resolve(config.storage, config.reference)
        return ChosenReference(folder, "the model that the setting `reference` names")
    folders = {name: resolve(config.storage, given) for name, given in config.models.items()}
    recipes = {name: _recipe(folder) for name, folder in folders.items()}
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


def _recipe(folder: Path) -> dict[str, Any]:
    """What the export job noted of the run; empty for a model that it did not write."""
    file = folder / RECIPE_FILE
    try:
        recipe = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{file} cannot be read: {error}; export the model again, or name a `reference`"
        ) from error
    return recipe if isinstance(recipe, dict) else {}


def _start_of(name: str, recipe: Mapping[str, Any], config: EvaluateConfig) -> ChosenReference:
    """The model that a run started from, where it lay or under this storage.

    Raises:
        ModelError: it is gone, or was replaced.
    """
    noted = Path(recipe["initial"])
    places = [noted, Path(config.storage) / noted.name]
    folder = next((place for place in places if place.is_dir()), None)
    remedy = "put it back, or name another model as `reference`"
    if folder is None:
        raise ModelError(
            f"models.{name}: {recipe['job']} started from {str(noted)!r}, which is gone, and that "
            f"is the model to compare with; {remedy}"
        )
    if weights_fingerprint(folder) != recipe["initial_weights"]:
        raise ModelError(
            f"models.{name}: {recipe['job']} started from {str(folder)!r}, and something replaced "
            f"the weights there since; {remedy}"
        )
    return ChosenReference(folder, f"the start of the {recipe['job']} run that made {name!r}")
