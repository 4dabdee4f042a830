"""Optimizer steps on one device, in a process of its own, so that each starts with empty memory.

    python -m tests.benchmarks.gpu_training '{"side": "ours", "job": "sft", ...}'

prints, last, one JSON line: what each step after the warm-up took and needed. Ours is the job's own
path without Ray: the settings checked as for a run, ZeRO stage 1 in one process, which under
bfloat16 keeps float32 weights for the optimizer. TRL has float32 weights and computes in bfloat16.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.import_utils import is_flash_attn_2_available

from metaalign.config import DPOConfig, SFTConfig
from metaalign.steps.plan import Plan
from metaalign.steps.selection import ranges
from metaalign.steps.trees import build_rows
from metaalign.store.token_store import TokenStore
from metaalign.train.engines.starting import open_reference, start_engine
from metaalign.train.launch.driver import prepare_task
from metaalign.train.launch.standalone import join_workers
from metaalign.train.loop.sweep_losses import SweepLosses
from metaalign.train.loop.training_loop import LOSS, Metrics, train
from metaalign.train.task import EXAMPLES_PER_SWEEP_STEP, DeviceType, Task, gather_materials
from tests.benchmarks.gpu_arithmetic import DecoderShape, seen_by, seen_in_sequences
from tests.benchmarks.trl_trainer import BETA, build_trainer, sequences_of

WARM_UP_STEPS = 3
LEARNING_RATE = 1e-5
CHUNK_SIZE_MB = 512
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class TrainingSpec:
    """What one process is to do."""

    side: str
    """ours or trl."""
    job: str
    """sft or dpo."""
    storage: str
    """Holds the token store, `store`, and the model, `base`."""
    device_type: DeviceType
    budget: int
    """Tokens of a row of ours; of TRL's forward pass about as many."""
    steps: int
    """The warm-up not counted."""
    global_batch_size: int
    optimizer: str = "auto"
    """Of ours, as in the setting optimizer.name."""
    activation_checkpointing: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of TRL's config."""


class Work(NamedTuple):
    """What a step holds."""

    examples: int
    tokens: int
    """As our rows store them, shared prefixes once."""
    seen: int
    """Pairs of a token and one that it sees, among these."""
    sequence_tokens: int
    """Of all sequences, as if nothing were shared."""
    sequence_seen: int
    targets: int


class StepMeter:
    """Notes when steps end, with the device at rest."""

    def __init__(self, device_type: DeviceType) -> None:
        self._cuda = device_type == "cuda"
        self._ended: list[float] = []

    def mark(self) -> None:
        """After a step."""
        if self._cuda:
            torch.cuda.synchronize()
        self._ended.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Of each step after the warm-up."""
        return np.diff(self._ended)[WARM_UP_STEPS - 1 :].tolist()

    def peak_mb(self) -> float | None:
        """Memory that tensors took at most; None where the device cannot tell."""
        return torch.cuda.max_memory_allocated() / 1e6 if self._cuda else None


def task_of(spec: TrainingSpec) -> Task:
    """The run of ours, checked as the job checks it."""
    settings = {
        "storage": spec.storage,
        "output": f"{spec.side}-{spec.job}",
        "model": {
            "path": "base",
            "activation_checkpointing": spec.activation_checkpointing,
        },
        "length": {"epochs": None, "max_steps": WARM_UP_STEPS + spec.steps},
        "batch": {
            "global_batch_size": spec.global_batch_size,
            "budget": spec.budget,
            "rows": 1,
            "chunk_size_mb": CHUNK_SIZE_MB,
        },
        "optimizer": {
            "name": spec.optimizer,
            "learning_rate": LEARNING_RATE,
            "schedule": "constant",
            "warmup_ratio": 0,
        },
        "zero": {"stage": 1},
    }
    if spec.job == "dpo":
        return prepare_task(
            DPOConfig.model_validate({**settings, "loss": {"beta": BETA}}), spec.device_type
        )
    return prepare_task(SFTConfig.model_validate(settings), spec.device_type)


def train_ours(spec: TrainingSpec) -> dict[str, Any]:
    """Our steps, after the reference pass that DPO needs."""
    task = task_of(spec)
    join_workers(spec.device_type)
    engine = start_engine(task, torch.device(spec.device_type, 0))
    store, plan, _ = gather_materials(task)
    sweep_losses = SweepLosses(task, engine, store, open_reference)
    sweep_loss = sweep_losses.of(plan.sweep(EXAMPLES_PER_SWEEP_STEP))
    meter, losses = StepMeter(spec.device_type), []

    def after_step(_: int, metrics: Metrics) -> bool:
        losses.append(metrics[LOSS])
        meter.mark()
        return False

    train(
        engine,
        plan,
        sweep_loss.reader,
        sweep_loss.loss,
        optimizer=task.config.optimizer,
        after_step=after_step,
    )
    how = {"optimizer": type(engine.optimizer).__name__, "attention": task.attention}
    return report(spec, store, plan, meter, losses) | how | {"dtype": task.dtype}


def train_trl(spec: TrainingSpec) -> dict[str, Any]:
    """TRL's steps over the same examples, its references computed beforehand."""
    from transformers import TrainerCallback

    task = task_of(spec)
    store, plan, _ = gather_materials(task)
    meter, losses = StepMeter(spec.device_type), []

    class Callback(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            meter.mark()

        def on_log(self, *_: Any, logs: dict[str, Any], **__: Any) -> None:
            if "loss" in logs:
                losses.append(float(logs["loss"]))

    cuda = spec.device_type == "cuda"
    flash = cuda and is_flash_attn_2_available()
    kernel = "flash_attention_2" if flash else "sdpa"
    works = [work_of(store, plan, step) for step in range(plan.num_steps)]
    examples = sum(work.examples for work in works)
    mean = sum(work.sequence_tokens for work in works) / examples
    batch = forward_batch(spec.budget, mean, spec.global_batch_size)
    settings: dict[str, Any] = {
        "output_dir": f"{spec.storage}/trl",
        "max_steps": plan.num_steps,
        "learning_rate": LEARNING_RATE,
        "bf16": cuda,
        "use_cpu": not cuda,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": spec.global_batch_size // batch,
        "gradient_checkpointing": spec.activation_checkpointing,
        **({"precompute_ref_log_probs": True} if spec.job == "dpo" else {}),
        **({"padding_free": True} if flash and spec.job == "sft" else {}),
        **spec.options,
    }
    trainer = build_trainer(
        spec.job,
        examples=sequences_of(store, plan, spec.job),
        tokenizer=store.template.tokenizer,
        model=AutoModelForCausalLM.from_pretrained(
            Path(spec.storage) / "base", dtype=torch.float32, attn_implementation=kernel
        ),
        reference=None,
        settings=settings,
        callbacks=[Callback()],
    )
    trainer.train()
    how = {"attention": kernel, "forward_batch": batch, "options": spec.options}
    return report(spec, store, plan, meter, losses) | how


def forward_batch(budget: int, tokens_of_an_example: float, most: int) -> int:
    """Examples of a forward pass that takes about as many tokens as a row: a power of two."""
    batch = 1
    while 2 * batch <= most and 2 * batch * tokens_of_an_example <= budget:
        batch *= 2
    return batch


def work_of(store: TokenStore, plan: Plan, step: int) -> Work:
    """By the rows of one worker, and by the sequences that they are of."""
    selection, positions = plan.selection, plan.step(step)
    tokens = seen = 0
    for micro in plan.layout(step, 1):
        rows = build_rows(store, selection, micro, 0)
        tokens += rows.real_tokens
        padding = rows.tokens.size - rows.real_tokens  # at depth 0, it sees itself alone
        seen += seen_by(rows.positions.ravel()) - padding
    lengths = selection.sequence_length[ranges(selection.response_start, positions)[0]]
    return Work(
        examples=len(positions),
        tokens=tokens,
        seen=seen,
        sequence_tokens=int(lengths.sum()),
        sequence_seen=seen_in_sequences(lengths),
        targets=int(selection.targets[positions].sum()),
    )


def report(
    spec: TrainingSpec,
    store: TokenStore,
    plan: Plan,
    meter: StepMeter,
    losses: Sequence[float],
) -> dict[str, Any]:
    """Medians over the steps of rates, and of the operations that a second needed.

    What a side must compute is what it stores: ours each shared prefix once, TRL every sequence.
    """
    config = AutoConfig.from_pretrained(Path(spec.storage) / "base")
    shape = DecoderShape.of(config.to_dict())
    seconds = meter.seconds()
    works = [work_of(store, plan, step) for step in range(WARM_UP_STEPS, plan.num_steps)]
    ours = spec.side == "ours"
    flops = [
        shape.training_flops(
            tokens=work.tokens if ours else work.sequence_tokens,
            seen=work.seen if ours else work.sequence_seen,
            targets=work.targets,
        )
        for work in works
    ]

    def rate(values: Sequence[float]) -> float:
        return statistics.median(np.divide(values, seconds).tolist())

    return {
        "examples_per_second": rate([work.examples for work in works]),
        "sequence_tokens_per_second": rate([work.sequence_tokens for work in works]),
        "computed_tokens_per_second": rate(
            [work.tokens if ours else work.sequence_tokens for work in works]
        ),
        "flops_per_second": rate(flops),
        "step_seconds": statistics.median(seconds),
        "peak_mb": meter.peak_mb(),
        "activation_checkpointing": spec.activation_checkpointing,
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }


SIDES: dict[str, Callable[[TrainingSpec], dict[str, Any]]] = {"ours": train_ours, "trl": train_trl}


def measured(spec: TrainingSpec) -> dict[str, Any] | None:
    """What the process found; None where the device's memory was too small.

    Raises:
        RuntimeError: it failed otherwise.
    """
    command = [sys.executable, "-m", "tests.benchmarks.gpu_training", json.dumps(asdict(spec))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        if "OutOfMemoryError" in done.stderr:
            return None
        raise RuntimeError(f"{spec}:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    spec = TrainingSpec(**json.loads(sys.argv[1]))
    print(json.dumps(SIDES[spec.side](spec)))


if __name__ == "__main__":
    main()
