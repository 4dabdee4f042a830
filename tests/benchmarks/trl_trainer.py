"""TRL's trainers over the plan's own steps: the same token ids, in the same order.

Knows no clock: what a benchmark measures, it measures in a callback.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metaalign.steps.plan import Plan
from metaalign.store.token_store import TokenStore

BETA = 0.1
DEFAULT_BATCH_SIZE = 8
"""TRL's own per_device_train_batch_size."""

SETTINGS: dict[str, Any] = {
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "weight_decay": 0.0,
    "adam_beta2": 0.999,
    "max_grad_norm": 1.0,
    "optim": "adamw_torch_fused",
    "max_length": None,
    "logging_steps": 1,
    "logging_first_step": True,
    "disable_tqdm": True,
    "report_to": [],
    "save_strategy": "no",
    "seed": 0,
}
"""What both sides do alike, and what is switched off beside the steps."""


def sequences_of(store: TokenStore, plan: Plan, job: str) -> list[dict[str, list[int]]]:
    """Every visit of the plan in its order, as TRL's trainers hold a tokenized example."""
    selection = plan.selection
    visits = np.concatenate([plan.step(step) for step in range(plan.num_steps)])
    examples = []
    for position in visits.tolist():
        row = int(selection.example[position])
        prompt = store.prompt(row).tolist()
        chosen, rejected = (store.response(row, number).tolist() for number in (0, 1))
        if job == "dpo":
            example = {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
        else:
            labels = [-100] * len(prompt) + chosen
            example = {"input_ids": prompt + chosen, "labels": labels}
        examples.append(example)
    return examples


def build_trainer(
    job: str,
    *,
    examples: list[dict[str, list[int]]],
    tokenizer: Any,
    model: Any,
    reference: Any | None,
    settings: Mapping[str, Any],
    callbacks: Sequence[Any],
) -> Any:
    """The trainer of a job, over examples that are tokenized and in order.

    Args:
        reference: The model again, where TRL is to ask it at every step; None elsewhere.
        settings: Arguments of TRL's config beside and over `SETTINGS`.
    """
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    base: Any = DPOTrainer if job == "dpo" else SFTTrainer

    class InOrder(base):
        """Takes the examples in the order of the plan, tokenized as they are."""

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return SequentialSampler(dataset if dataset is not None else self.train_dataset)

    arguments = {**SETTINGS, **settings}
    more = {}
    if job == "dpo":
        config: Any = DPOConfig(**arguments, beta=BETA)
        more = {"ref_model": reference} if reference is not None else {}
    else:
        prepared = {"skip_prepare_dataset": True}
        config = SFTConfig(**arguments, completion_only_loss=True, dataset_kwargs=prepared)
    return InOrder(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(examples),
        processing_class=tokenizer,
        callbacks=list(callbacks),
        **more,
    )


def needs_reference(job: str, settings: Mapping[str, Any]) -> bool:
    """Whether TRL asks the reference model at every step."""
    return job == "dpo" and not settings.get("precompute_ref_log_probs", False)
