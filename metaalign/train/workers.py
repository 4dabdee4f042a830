"""What every worker of a training job does, from its engine to its result. Knows no Ray.

The same code runs in Ray Train's workers, under torchrun and in a single process:
`publish` and `track` are all that the launcher brings.
"""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from metaalign.config import DPOConfig
from metaalign.steps.plan import Sweep
from metaalign.train.checkpoints import (
    check_identity,
    keep_newest,
    load_checkpoint,
    newest_checkpoint,
    read_manifest,
    save_checkpoint,
    step_folder,
)
from metaalign.train.engines import Engine
from metaalign.train.logprobs import Policy
from metaalign.train.loop import (
    LOSS,
    TOKENS,
    TOKENS_PER_SECOND,
    Loss,
    Metrics,
    Reader,
    measure,
    train,
)
from metaalign.train.losses import DPOLoss, SFTLoss
from metaalign.train.models import load_policy
from metaalign.train.progress import ProgressBar
from metaalign.train.reference import reference_fingerprint, reference_logprobs
from metaalign.train.results import pair_order, write_result
from metaalign.train.task import (
    EXAMPLES_PER_SWEEP_STEP,
    Materials,
    Task,
    gather_materials,
    identity,
)
from metaalign.train.zero import (
    ZeroEngine,
    deepspeed_settings,
    join_deepspeed,
    quiet_deepspeed,
)

Publish = Callable[[str, Callable[[Path], None]], None]
"""Given a checkpoint's name and what writes it into a folder, makes it part of the run. Every
worker calls it."""

Track = Callable[[Mapping[str, float], int], None]
"""Takes the metrics after a number of steps. Called on worker 0 alone."""

LOG_RATIO = "absolute_log_ratio"
"""Mean distance of a response's log-prob from the reference's, in nats: what rounding makes of 0
at the start."""


def start_engine(task: Task, device: torch.device) -> ZeroEngine:
    """The policy under DeepSpeed. `torch.distributed` must be up."""
    quiet_deepspeed()
    join_deepspeed()
    config = task.config
    settings = deepspeed_settings(
        config.zero,
        max_grad_norm=config.optimizer.max_grad_norm,
        dtype=task.torch_dtype,
        device_type=task.device_type,
    )
    return ZeroEngine(
        build_policy(task, settings),
        zero=config.zero,
        optimizer=config.optimizer,
        dtype=task.torch_dtype,
        device=device,
    )


def build_policy(task: Task, deepspeed: dict[str, Any] | None) -> Policy:
    """The policy of a task, at its start."""
    return load_policy(
        task.initial,
        deepspeed=deepspeed,
        dtype=task.torch_dtype,
        attention=task.attention,
        layout=task.layout,
        chunk_size_mb=task.config.batch.chunk_size_mb,
    )


def publish_into(folder: str | Path, keep: int) -> Publish:
    """Without Ray: checkpoints go straight into the run's folder, the newest are kept."""

    def publish(name: str, write: Callable[[Path], None]) -> None:
        write(Path(folder) / name)
        keep_newest(folder, keep)

    return publish


class Objective(NamedTuple):
    """A loss over a selection, and what it takes to compute it."""

    sweep: Sweep
    reader: Reader
    loss: Loss
    reference: np.ndarray | None
    """(R,) the reference's log-probs of all used responses, in nats; None for SFT."""


class TrainingRun:
    """One worker's part in a run: reference pass, measurements, steps, checkpoints, result."""

    def __init__(self, task: Task, engine: Engine, *, publish: Publish, track: Track) -> None:
        self.task = task
        self.engine = engine
        self.materials: Materials = gather_materials(task)
        self._publish, self._track = publish, track
        self._identity = identity(task, self.materials.store)
        self._step = 0
        self._began = 0.0
        self._progress: dict[str, Any] = {"tokens": 0.0, "seconds": 0.0, "before": None}

    def run(self) -> dict[str, Any]:
        """Train to the last step; the result, which worker 0 also writes to the run's folder.

        Raises:
            TrainingError: the folder holds another run, or the loss is not finite.
        """
        plan, config = self.materials.plan, self.task.config
        # The reference is the model at its start, so it passes before a checkpoint is loaded.
        objective = self._objective(plan.sweep(EXAMPLES_PER_SWEEP_STEP))
        held_out = self.materials.held_out
        held = None if held_out is None else self._objective(held_out)
        self._resume()
        if held and self._progress["before"] is None:
            self._progress["before"] = self._measure(held)[0]
        self._began = time.monotonic() - self._progress["seconds"]
        self._bar = ProgressBar(self.task.job, plan.num_steps, start=self._step)
        train(
            self.engine,
            plan,
            objective.reader,
            objective.loss,
            optimizer=config.optimizer,
            log=self._log,
            save=self._save,
            measure=lambda: held and self._measure(held),
            start=self._step,
            save_every=config.checkpoint.every_steps,
            measure_every=config.held_out.every_steps,
        )
        result = self._result(held)
        if self.engine.rank == 0:
            write_result(self.task.folder, result)
        return result

    def _objective(self, sweep: Sweep) -> Objective:
        """The loss over a selection; for DPO after the reference pass over the sweep."""
        store, config, task = self.materials.store, self.task.config, self.task
        trim = task.attention != "flex_attention"
        reader = Reader(store, sweep.selection, config.batch.budget, trim=trim)
        if not isinstance(config, DPOConfig):
            return Objective(sweep, reader, SFTLoss(sweep.selection, store.columns), None)
        fingerprint = reference_fingerprint(
            sweep,
            weights=task.weights,
            dtype=task.dtype,
            store=store.fingerprint,
            template=store.manifest["template_fingerprint"],
        )
        bar = ProgressBar("reference", sweep.num_steps)
        reference = reference_logprobs(
            self.engine,
            sweep,
            reader,
            store.path / "reference" / fingerprint,
            progress=bar.update if self.engine.rank == 0 else None,
        )
        loss = DPOLoss(
            sweep.selection,
            store.columns,
            reference,
            beta=config.loss.beta,
            sft_weight=config.loss.sft_weight,
        )
        return Objective(sweep, reader, loss, reference)

    def _resume(self) -> None:
        """Go on from the newest checkpoint, as worker 0 sees it; without one, from the start."""
        found = newest_checkpoint(self.task.folder) if self.engine.rank == 0 else None
        step = 0 if found is None else read_manifest(found)["step"]
        step = int(self.engine.sum(torch.tensor(float(step), device=self.engine.device)))
        if not step:
            return
        folder = Path(self.task.folder) / step_folder(step)
        check_identity(read_manifest(folder), self._identity, Path(self.task.folder))
        self._progress = dict(load_checkpoint(self.engine, folder)["progress"])
        self._step = step

    def _log(self, step: int, metrics: Metrics) -> None:
        self._step = step
        self._progress["loss"] = metrics[LOSS]
        self._progress["tokens"] += metrics[TOKENS]
        self._progress["seconds"] = time.monotonic() - self._began
        if self.engine.rank == 0:
            self._bar.update(step, loss=metrics[LOSS], tokens=metrics[TOKENS])
            self._track({f"train/{name}": value for name, value in metrics.items()}, step)

    def _save(self, step: int) -> None:
        def write(folder: Path) -> None:
            save_checkpoint(
                self.engine, folder, step=step, identity=self._identity, progress=self._progress
            )

        self._publish(step_folder(step), write)

    def _measure(self, held: Objective) -> tuple[Metrics, np.ndarray]:
        """The held-out metrics, which are tracked, and (R,) log-probs in nats."""
        metrics, logprobs = measure(self.engine, held.sweep, held.reader, held.loss)
        if held.reference is not None:
            metrics[LOG_RATIO] = float(np.abs(logprobs - held.reference).mean())
        if self.engine.rank == 0:
            self._track({f"held_out/{name}": value for name, value in metrics.items()}, self._step)
        return metrics, logprobs

    def _result(self, held: Objective | None) -> dict[str, Any]:
        progress, plan = self._progress, self.materials.plan
        held_out = order = None
        if held is not None:
            after, logprobs = self._measure(held)
            held_out = {"before": progress["before"], "after": after}
            if held.reference is not None:
                order = pair_order(
                    held.sweep.selection,
                    self.materials.store.columns,
                    policy=logprobs,
                    reference=held.reference,
                )
        return {
            "job": self.task.job,
            "steps": self._step,
            "loss": progress["loss"],
            "held_out": held_out,
            "pair_order": order,
            "seconds": progress["seconds"],
            "tokens": progress["tokens"],
            TOKENS_PER_SECOND: progress["tokens"] / max(progress["seconds"], 1e-9),
            "optimizer": type(self.engine.optimizer).__name__,
            "workers": self.engine.world_size,
            "parameters": sum(math.prod(shape) for shape in self.engine.shapes().values()),
            "layout": self.task.layout,
            "dtype": self.task.dtype,
            "examples": plan.selection.ledger,
        }
