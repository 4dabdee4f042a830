"""The two sides of a duel, each a process that takes optimizer steps when it is told to.

    python -m tests.benchmarks.contenders '{"side": "ours", "job": "dpo", ...}'

It reads lines `go N` and answers with one JSON line: the seconds, losses and gradient norms of the
next N steps, and the peak of its memory so far. Both sides take the same examples in the same
steps, from the same weights, in float32 with torch's fused AdamW, without DeepSpeed.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from metaalign.config.preference_losses import PreferenceLossConfig
from metaalign.config.sections import OptimizerConfig
from metaalign.steps.plan import Packing, Plan
from metaalign.steps.selection import select_best, select_ranked
from metaalign.steps.trees import measure_forest
from metaalign.store.token_store import TokenStore
from metaalign.train.loop.training_loop import GRAD_NORM, LOSS, Metrics, Reader, measure, train
from metaalign.train.losses.pairs import PairLoss, SFTLoss
from metaalign.train.model.policy import Policy, targets_per_chunk
from tests.benchmarks.trl_trainer import BETA, build_trainer, needs_reference, sequences_of
from tests.plain_engine import PlainEngine

EXAMPLES_PER_SWEEP_STEP = 16


@dataclass(frozen=True)
class Spec:
    """What one side is to do."""

    side: str
    """ours or trl."""
    job: str
    """sft or dpo."""
    store: str
    model: str
    steps: int
    global_batch_size: int
    group_by: str = "example"
    threads: int = 2
    learning_rate: float = 3e-4
    """High enough to move the DPO loss visibly away from log 2 within a dozen steps."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of ours: budget, rows, chunk_size_mb. Of TRL: arguments of its config."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class Gate:
    """Lets steps through as the other end asks for them, and tells it what they took."""

    def __init__(self, out: Any) -> None:
        self._out = out
        self._left = 0
        self._done: dict[str, Any] = {}

    def wait(self) -> None:
        """Before a step: returns at once while there are steps left of the last `go N`."""
        if self._left:
            self._left -= 1
            return
        if self._done:
            seconds = time.perf_counter() - self._began
            self._tell({**self._done, "seconds": seconds, "peak_mb": memory_mb("VmHWM")})
        else:
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
            self._tell({"ready": True, "resident_mb": memory_mb("VmRSS")})
        line = sys.stdin.readline()
        if not line:
            sys.exit(0)
        self._left = int(line.split()[1]) - 1
        self._done = {"losses": [], "grad_norms": []}
        self._began = time.perf_counter()

    def passed(self, loss: float, grad_norm: float) -> None:
        """After a step."""
        self._done["losses"].append(loss)
        self._done["grad_norms"].append(grad_norm)

    def _tell(self, message: dict[str, Any]) -> None:
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()


def memory_mb(field_name: str) -> float:
    """VmRSS, the resident memory of this process, or VmHWM, its peak, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(field_name))
    return int(line.split()[1]) * 1024 / 1e6


def plan_of(spec: Spec) -> tuple[TokenStore, Plan]:
    """The steps, the same for both sides."""
    store = TokenStore.open(spec.store)
    select = select_ranked if spec.job == "dpo" else select_best
    options: Any = {"group_by": spec.group_by, "split": "train", "context": 4096}
    packing = Packing(
        select(store.columns, **options),
        partial(measure_forest, store),
        budget=spec.options.get("budget", 4096),
        rows=spec.options.get("rows", 1),
        layout="tree",
    )
    plan = Plan(
        packing,
        global_batch_size=spec.global_batch_size,
        seed=0,
        epochs=None,
        max_steps=spec.steps,
    )
    return store, plan


def load_model(spec: Spec) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        spec.model, dtype=torch.float32, attn_implementation="sdpa"
    )


def run_ours(spec: Spec, gate: Gate) -> None:
    """The package's own step, in one process without Ray and without DeepSpeed."""
    store, plan = plan_of(spec)
    selection = plan.selection
    optimizer = OptimizerConfig(
        name="adamw", learning_rate=spec.learning_rate, schedule="constant", warmup_ratio=0,
        betas=(0.9, 0.999), max_grad_norm=1.0,
    )  # fmt: skip
    model = load_model(spec)
    chunk = targets_per_chunk(spec.options["chunk_size_mb"], model.config.vocab_size)
    policy = Policy(model, attention="sdpa", layout="tree", chunk_targets=chunk).train()
    engine = PlainEngine(policy, optimizer)
    reader = Reader(store, selection)
    loss: Any = SFTLoss(selection, store.columns)
    if spec.job == "dpo":
        sweep = plan.sweep(EXAMPLES_PER_SWEEP_STEP)
        reference = measure(engine, sweep, reader, None).logprobs
        config = PreferenceLossConfig(beta=BETA)
        loss = PairLoss(selection, store.columns, reference[None], config)

    def after_step(_: int, metrics: Metrics) -> bool:
        gate.passed(metrics[LOSS], metrics[GRAD_NORM])
        gate.wait()
        return False

    gate.wait()
    train(engine, plan, reader, loss, optimizer=optimizer, after_step=after_step)


def run_trl(spec: Spec, gate: Gate) -> None:
    """TRL's trainer of the same job, over the same token ids."""
    from transformers import TrainerCallback

    class Callback(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            gate.wait()

        def on_log(self, *_: Any, logs: dict[str, Any], **__: Any) -> None:
            if "loss" in logs:
                gate.passed(float(logs["loss"]), float(logs["grad_norm"]))

    settings = {
        "output_dir": f"{spec.model}-trl-{os.getpid()}",
        "max_steps": spec.steps,
        "learning_rate": spec.learning_rate,
        "bf16": False,
        "use_cpu": True,
        **spec.options,
    }
    store, plan = plan_of(spec)
    trainer = build_trainer(
        spec.job,
        examples=sequences_of(store, plan, spec.job),
        tokenizer=store.template.tokenizer,
        model=load_model(spec),
        reference=load_model(spec) if needs_reference(spec.job, spec.options) else None,
        settings=settings,
        callbacks=[Callback()],
    )
    trainer.train()
    gate.wait()


SIDES: dict[str, Callable[[Spec, Gate], None]] = {"ours": run_ours, "trl": run_trl}


def main() -> None:
    spec = Spec(**json.loads(sys.argv[1]))
    torch.set_num_threads(spec.threads)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    SIDES[spec.side](spec, Gate(out))


if __name__ == "__main__":
    main()
