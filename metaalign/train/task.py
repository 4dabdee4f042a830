"""A training job as plain values, and its store and plan, the same on the driver and the workers.

Imports neither an engine nor Ray.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from metaalign.config import DPOConfig, SFTConfig, resolve
from metaalign.config.preference_losses import names_with_margin
from metaalign.errors import PlanError
from metaalign.examples import HELD_OUT, TRAIN
from metaalign.folders import checkpoints_place, weights_fingerprint
from metaalign.steps.mixture import Mixture, mixture_of
from metaalign.steps.plan import LENGTH_MULTIPLE, Layout, Packing, Plan, Sweep
from metaalign.steps.selection import (
    Selection,
    select_best,
    select_labelled,
    select_ranked,
    subset,
)
from metaalign.steps.trees import measure_forest
from metaalign.store.token_store import TokenStore
from metaalign.template import Template
from metaalign.train.model.attention import BLOCK
from metaalign.train.model.context import stated_context
from metaalign.train.model.loading import find_reference, load_config_of
from metaalign.train.model.probe import choose_layout

EXAMPLES_PER_SWEEP_STEP = 512
"""Number of examples in one shard of a reference pass, and in one step of a measurement."""

TrainingConfig = SFTConfig | DPOConfig
DeviceType = Literal["cpu", "cuda"]
Attention = Literal["sdpa", "flex_attention"]


class Reference(NamedTuple):
    """A further reference model, in addition to the initial model."""

    source: str
    """Hugging Face folder or hub name."""
    weights: str
    """Fingerprint of its weights; for a hub name the name itself."""
    context: int
    """Its context length in tokens."""


@dataclass(frozen=True)
class Task:
    """A run's settings, and what the driver derived from them."""

    config: TrainingConfig
    initial: str
    """Hugging Face folder of the initial model, from which training starts."""
    weights: str
    """Fingerprint of the initial model's weights."""
    context: int
    """Smallest context length, in tokens, of the model and the further references."""
    layout: Layout
    attention: Attention
    dtype: Literal["float32", "bfloat16"]
    device_type: DeviceType
    references: tuple[Reference, ...] = ()
    """Further references, in addition to the initial model."""
    train_vocabulary: bool = False
    """Whether embeddings and head are trained together with the adapters."""
    owner: str | None = None
    """Name under which the job owns the run's folder. None until the run begins."""

    @property
    def job(self) -> Literal["sft", "dpo"]:
        return "dpo" if isinstance(self.config, DPOConfig) else "sft"

    @property
    def torch_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float32

    @property
    def folder(self) -> str:
        """Folder of the run's recipe and result."""
        return str(resolve(self.config.storage, self.config.output))

    @property
    def checkpoints(self) -> str:
        """Path or URI of the folder of the run's checkpoints."""
        config = self.config
        return checkpoints_place(self.folder, config.checkpoint.storage, config.output)

    def to_plain(self) -> dict[str, Any]:
        """A JSON object, to send to another process."""
        plain = {name: value for name, value in asdict(self).items() if name != "config"}
        return {**plain, "job": self.job, "config": self.config.model_dump(mode="json")}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Task":
        """The inverse of `to_plain`. Validates every setting again."""
        values = dict(plain)
        values["references"] = tuple(Reference(*each) for each in values["references"])
        model = {"sft": SFTConfig, "dpo": DPOConfig}[values.pop("job")]
        return cls(**{**values, "config": model.model_validate(values["config"])})


class Materials(NamedTuple):
    """The store that a task reads, its plan, and its held-out examples."""

    store: TokenStore
    plan: Plan
    held_out: Sweep | None
    """None if the store has no held-out example that the loss can use."""


def with_references(task: Task, template: Template) -> Task:
    """The task with its further references, checked against the store's tokenizer and the layout.

    Raises:
        ModelError: a reference cannot be read, or its tokenizer differs from the store's.
        LayoutError: a reference does not support the task's layout.
    """
    config, found = task.config, []
    for path in config.loss.references if isinstance(config, DPOConfig) else ():
        source = find_reference(path, template, config.storage)
        model_config = load_config_of(source)
        context = min(task.context, stated_context(model_config) or task.context)
        budget = config.batch.budget
        choose_layout(model_config, task.layout, task.attention, context=context, budget=budget)
        weights = weights_fingerprint(source) if Path(source).is_dir() else source
        found.append(Reference(source, weights, context))
    context = min([task.context, *(reference.context for reference in found)])
    return replace(task, context=context, references=tuple(found))


def gather_materials(task: Task) -> Materials:
    """Open the store, select the examples, and plan every step.

    Raises:
        DataError: there is no finished store.
        PlanError: there is no example to train on, there are too few for one step, or the budget
            is too small. The message names the setting.
    """
    config = task.config
    store = TokenStore.open(resolve(config.storage, config.store))
    selection = _select(task, store, TRAIN)
    batch = config.batch
    if len(selection) < batch.global_batch_size:
        raise PlanError(
            f"{store.path}: {len(selection)} examples can be trained on, fewer than one step's "
            f"batch.global_batch_size ({batch.global_batch_size}); lower it, or prepare more "
            f"examples. Examples by outcome: {selection.ledger}"
        )
    plan = Plan(
        _packing(task, store, selection),
        global_batch_size=batch.global_batch_size,
        seed=config.seed,
        epochs=config.length.epochs,
        max_steps=config.length.max_steps,
        mixture=_mixture(task, store, selection),
    )
    return Materials(store, plan, _held_out(task, store))


def select_held_out(task: Task, store: TokenStore) -> Selection:
    """The held-out examples to measure: at most `held_out.max_examples`, sampled by the seed.

    Raises:
        PlanError: no held-out example can be used by the loss. The message says why.
    """
    config = task.config
    if not (store.columns.split == HELD_OUT).any():
        raise PlanError(f"{store.path} has no held-out example")
    return subset(_select(task, store, HELD_OUT), config.held_out.max_examples, config.seed)


def identity(task: Task, store: TokenStore) -> dict[str, Any]:
    """The values that must stay the same for a run to continue from its checkpoint: everything that
    affects its losses or its result."""
    config = task.config
    sections = {"length": config.length, "optimizer": config.optimizer}
    if isinstance(config, DPOConfig):
        sections["loss"] = config.loss
    settings = {
        f"{section}.{key}": value
        for section, values in sections.items()
        for key, value in values.model_dump(mode="json").items()
    }
    if task.references:
        settings["loss.references"] = [reference.weights for reference in task.references]
    return {
        "job": task.job,
        "store": store.fingerprint,
        "template": store.manifest["template_fingerprint"],
        "model": task.weights,
        "dtype": task.dtype,
        "seed": config.seed,
        "batch.global_batch_size": config.batch.global_batch_size,
        "batch.group_by": config.batch.group_by,
        "batch.mixture": config.batch.mixture,
        # The result compares held-out metrics before the first step with those after the last.
        "held_out.max_examples": config.held_out.max_examples,
        "model.context": config.model.context,
        "model.lora": config.model.model_dump(mode="json")["lora"],
        **settings,
    }


def _select(task: Task, store: TokenStore, split: str) -> Selection:
    config, columns = task.config, store.columns
    loss = config.loss if isinstance(config, DPOConfig) else None
    select = select_best
    if loss is not None:
        select = select_labelled if loss.kind.data == "single" else select_ranked
    group_by = config.batch.group_by
    selection = select(columns, split=split, context=task.context, group_by=group_by)
    with_margin = int((columns.margin[selection.example] != 0).sum())
    if loss is not None and with_margin and not loss.kind.has_margin:
        raise PlanError(
            f"loss.name {loss.name!r} uses no margin, but {with_margin} of {len(selection)} "
            f"examples of split {split!r} have one; choose one of "
            f"{', '.join(names_with_margin())}, or prepare the data without `margin`"
        )
    return selection


def _mixture(task: Task, store: TokenStore, selection: Selection) -> Mixture | None:
    weights = task.config.batch.mixture
    if weights is None:
        return None
    return mixture_of(store.columns.source_file[selection.example], weights)


def _held_out(task: Task, store: TokenStore) -> Sweep | None:
    try:
        selection = select_held_out(task, store)
    except PlanError:  # plan_page and plan_checks report the reason
        return None
    packing = _packing(task, store, selection)
    return Sweep(packing, np.arange(len(selection)), EXAMPLES_PER_SWEEP_STEP)


def _packing(task: Task, store: TokenStore, selection: Selection) -> Packing:
    batch = task.config.batch
    return Packing(
        selection,
        partial(measure_forest, store),
        budget=batch.budget,
        rows=batch.rows,
        layout=task.layout,
        length_multiple=BLOCK if task.attention == "flex_attention" else LENGTH_MULTIPLE,
        context=task.context,
    )
