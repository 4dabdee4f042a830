"""A training job as plain values, and what follows from them alike on the driver and a worker.

Knows no engine and no Ray.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from metaalign.config import DPOConfig, SFTConfig, resolve
from metaalign.data.store import TokenStore
from metaalign.errors import PlanError
from metaalign.examples import HELD_OUT, TRAIN
from metaalign.steps.plan import Layout, Packing, Plan, Sweep
from metaalign.steps.selection import Selection, select_best, select_ranked, subset

EXAMPLES_PER_SWEEP_STEP = 512
"""Examples of one shard of a reference pass, and of one part of a measurement."""

TrainingConfig = SFTConfig | DPOConfig
DeviceType = Literal["cpu", "cuda"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """What the driver found out and decided."""

    config: TrainingConfig
    initial: str
    """Hugging Face folder that training starts from."""
    weights: str
    """Its fingerprint."""
    context: int
    """Tokens that the model can take."""
    layout: Layout
    attention: Literal["sdpa", "flex_attention"]
    dtype: Literal["float32", "bfloat16"]
    device_type: DeviceType

    @property
    def job(self) -> Literal["sft", "dpo"]:
        return "dpo" if isinstance(self.config, DPOConfig) else "sft"

    @property
    def torch_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float32

    @property
    def folder(self) -> str:
        """Where the run keeps its checkpoints and result."""
        return str(resolve(self.config.storage, self.config.output))

    def to_plain(self) -> dict[str, Any]:
        """Values that cross processes."""
        plain = {name: value for name, value in asdict(self).items() if name != "config"}
        return {**plain, "job": self.job, "config": self.config.model_dump(mode="json")}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Task":
        """The inverse of `to_plain`; checks every setting again."""
        values = dict(plain)
        model = {"sft": SFTConfig, "dpo": DPOConfig}[values.pop("job")]
        return cls(**{**values, "config": model.model_validate(values["config"])})


class Materials(NamedTuple):
    """What a task trains on and measures."""

    store: TokenStore
    plan: Plan
    held_out: Sweep | None
    """None where the store holds out nothing that the loss could use."""


def gather_materials(task: Task) -> Materials:
    """Open the store, select, and plan every step.

    Raises:
        DataError: there is no finished store.
        PlanError: nothing to train on, too few examples for one step, or a budget that is too
            short; names the setting.
    """
    config = task.config
    store = TokenStore.open(resolve(config.storage, config.store))
    selection = _select(task, store, TRAIN)
    batch = config.batch
    if len(selection) < batch.global_batch_size:
        raise PlanError(
            f"{store.path}: {len(selection)} examples can be trained on, fewer than one step's "
            f"batch.global_batch_size ({batch.global_batch_size}): {selection.ledger}"
        )
    plan = Plan(
        selection,
        global_batch_size=batch.global_batch_size,
        budget=batch.budget,
        rows=batch.rows,
        layout=task.layout,
        seed=config.seed,
        epochs=config.length.epochs,
        max_steps=config.length.max_steps,
    )
    return Materials(store, plan, _held_out(task, store))


def identity(task: Task, store: TokenStore) -> dict[str, Any]:
    """What must be the same for a run to be continued: all that bends its curve or its result."""
    config = task.config
    sections = {"length": config.length, "optimizer": config.optimizer}
    if isinstance(config, DPOConfig):
        sections["loss"] = config.loss
    settings = {
        f"{section}.{key}": value
        for section, values in sections.items()
        for key, value in values.model_dump(mode="json").items()
    }
    return {
        "job": task.job,
        "store": store.fingerprint,
        "template": store.manifest["template_fingerprint"],
        "model": task.weights,
        "dtype": task.dtype,
        "seed": config.seed,
        "batch.global_batch_size": config.batch.global_batch_size,
        "batch.group_by": config.batch.group_by,
        # The result compares held-out figures from before the first step with those at the end.
        "held_out.max_examples": config.held_out.max_examples,
        **settings,
    }


def _select(task: Task, store: TokenStore, split: str) -> Selection:
    select = select_ranked if task.job == "dpo" else select_best
    group_by = task.config.batch.group_by
    return select(store.columns, split=split, context=task.context, group_by=group_by)


def _held_out(task: Task, store: TokenStore) -> Sweep | None:
    config = task.config
    if not (store.columns.split == HELD_OUT).any():
        return None
    try:
        selection = _select(task, store, HELD_OUT)
    except PlanError as error:
        logger.warning("no held-out loss is measured: %s", error)
        return None
    selection = subset(selection, config.held_out.max_examples, config.seed)
    packing = Packing(
        selection, budget=config.batch.budget, rows=config.batch.rows, layout=task.layout
    )
    return Sweep(packing, np.arange(len(selection)), EXAMPLES_PER_SWEEP_STEP)
