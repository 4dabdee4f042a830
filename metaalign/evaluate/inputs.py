"""Reads and checks the inputs of the evaluate job before any model is loaded.

All problems with the models are reported together. Does not import Ray.
"""

from collections.abc import Iterable
from pathlib import Path

from metaalign.config import EvaluateConfig, resolve
from metaalign.data.recipes.cases import Case
from metaalign.errors import DataError, ModelError, TemplateError
from metaalign.evaluate.reference import ChosenReference, recipe_beside
from metaalign.examples import HELD_OUT
from metaalign.generate.embedded import check_folder, context_in
from metaalign.store.token_store import CASES_FILE, TokenStore
from metaalign.template import Template
from metaalign.train.model.loading import load_config_of


def holds_cases(store: Path) -> bool:
    """Whether a store has a non-empty file of cases."""
    file = store / CASES_FILE
    return file.is_file() and file.stat().st_size > 0


def read_cases(store: Path) -> list[Case]:
    """The held-out cases of a store.

    Raises:
        DataError: names the file and what to do.
    """
    file = store / CASES_FILE
    if not store.is_dir():
        raise DataError(f"{store}: the token store does not exist; run the prepare job first")
    if not file.is_file():
        raise DataError(
            f"{file} is missing: the store holds no cases; prepare it with the section `recipes`, "
            "which writes them"
        )
    lines = file.read_text(encoding="utf-8").split("\n")
    cases = []
    for number, line in enumerate(lines, start=1):
        try:
            cases += [Case.from_json(line)] if line else []
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"{file}: line {number} is not a case ({error!r}): {line[:200]!r}; prepare again"
            ) from error
    if not cases:
        raise DataError(f"{file} is empty; prepare the store again with recipes.cases above 0")
    return cases


def check_models(
    config: EvaluateConfig, template: Template, reference: ChosenReference | None = None
) -> None:
    """Check that every model exists and renders with the store's template.

    Raises:
        ModelError, TemplateError: lists every problem, each with the model, its folder and what to
            do.
    """
    folders = {
        f"models.{name}": resolve(config.storage, given) for name, given in config.models.items()
    }
    if reference is not None:
        folders["reference"] = reference.folder
    problems: list[ModelError | TemplateError] = []
    for setting, folder in folders.items():
        try:
            found = Template.load(check_folder(folder)).fingerprint
            if found != template.fingerprint:
                raise TemplateError(
                    f"{folder}: renders another template ({found}) than the store "
                    f"({template.fingerprint}); give a model that was trained on this store, or "
                    "the store that it was trained on"
                )
        except (ModelError, TemplateError) as error:
            problems.append(type(error)(f"{setting}: {error}"))
    if problems:
        lines = [*map(str, problems), _other_models(config)]
        raise type(problems[0])("\n  ".join(lines))


def shared_context(folders: Iterable[Path]) -> int:
    """Most tokens of an example that every model is measured on.

    An export keeps the context length in its model's config, so if training had a smaller
    `model.context`, only the recipe tells it. A model with long RoPE, for example, can be measured
    no further than it was trained.

    Raises:
        ModelError: a config states no context length, or a recipe cannot be read.
    """
    return min(_context(folder) for folder in folders)


def _context(folder: Path) -> int:
    stated = context_in(load_config_of(folder), folder)
    setting = recipe_beside(folder).get("config", {}).get("model", {}).get("context")
    return stated if setting is None else min(stated, setting)


def _other_models(config: EvaluateConfig) -> str:
    """The line of an error that lists the model folders in the storage."""
    folders = sorted(path.parent for path in Path(config.storage).glob("*/config.json"))
    linked = {folder.resolve() for folder in folders if folder.is_symlink()}
    found = [folder.name for folder in folders if folder.is_symlink() or folder not in linked]
    present = {
        name: given
        for name, given in config.models.items()
        if (resolve(config.storage, given) / "config.json").is_file()
    } or {"after": "FOLDER"}
    example = ", ".join(f"{name}: {given}" for name, given in present.items())
    return (
        f"the storage holds the model folders {', '.join(found) or '(none)'}; name those to "
        f"compare, such as models='{{{example}}}'"
    )


def nothing_to_evaluate(store: TokenStore) -> DataError:
    """The error for a store without cases and without measurable held-out examples."""
    count = int((store.columns.split == HELD_OUT).sum())
    if not count:
        return DataError(
            f"{store.path}: the store holds neither held-out examples nor cases, so there is "
            "nothing to evaluate; prepare it with held_out_ratio above 0"
        )
    return DataError(
        f"{store.path}: the store holds no cases, and none of its {count} held-out examples fits "
        "the context of every model and has a response to measure; use models with a larger "
        "context, or hold out more examples with held_out_ratio"
    )
