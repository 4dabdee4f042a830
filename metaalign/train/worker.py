"""The training run on each worker, from the engine to the result. Does not import Ray.

The same code runs in Ray Train's workers, under torchrun and in a single process.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from metaalign.errors import TrainingError
from metaalign.folders import open_folder
from metaalign.train.checkpoints.checkpoint_format import (
    check_identity,
    load_checkpoint,
    read_manifest,
)
from metaalign.train.checkpoints.history import agree_on_checkpoint, saved_steps
from metaalign.train.checkpoints.notices import Notices
from metaalign.train.checkpoints.saving import Saver
from metaalign.train.engines.agreement import all_or_none, from_first, met_by_all
from metaalign.train.engines.interface import Engine
from metaalign.train.engines.starting import OpenReference, open_reference
from metaalign.train.loop.best import Best, next_best
from metaalign.train.loop.measuring import HeldOut
from metaalign.train.loop.progress import ProgressBar
from metaalign.train.loop.results import write_result
from metaalign.train.loop.sweep_losses import SweepLoss, SweepLosses
from metaalign.train.loop.training_loop import (
    LOSS,
    TOKENS,
    TOKENS_PER_SECOND,
    WAITED,
    Metrics,
    train,
)
from metaalign.train.task import (
    EXAMPLES_PER_SWEEP_STEP,
    Materials,
    Task,
    gather_materials,
    identity,
)

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """Logs metrics by step. Only worker 0 may have one."""

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log the values of a step."""
        ...

    def flush(self) -> None:
        """Write all values logged so far."""
        ...


WORKERS = "workers"
"""Number of workers that took a step."""


class TrainingRun:
    """One worker's part in a run: reference pass, measurements, steps, checkpoints, result."""

    def __init__(
        self,
        task: Task,
        engine: Engine,
        *,
        tracker: Tracker | None,
        leaving: Callable[[], bool] | None = None,
        open_reference: OpenReference = open_reference,
    ) -> None:
        """Open the store and plan every step.

        Args:
            engine: Holds the policy with its initial weights.
            leaving: Returns whether a node is about to be preempted; see `Notices`.
            open_reference: Opens an engine over a further reference, the initial model of the task
                that it gets.
        """
        self.task = task
        self.engine = engine
        self.materials: Materials = all_or_none(lambda: gather_materials(task))
        self._losses = SweepLosses(task, engine, self.materials.store, open_reference)
        self._tracker = tracker
        self._checkpoints = all_or_none(lambda: open_folder(task.checkpoints))
        self._identity = identity(task, self.materials.store)
        self._saver = Saver(
            engine,
            task.folder,
            identity=self._identity,
            newest=task.config.checkpoint.keep,
            checkpoints=task.checkpoints,
            owner=task.owner,
        )
        self._notices = Notices(
            engine, task.folder, every_steps=task.config.checkpoint.notice_steps, leaving=leaving
        )
        self._step = 0
        self._began = 0.0
        self._progress: dict[str, Any] = {
            "tokens": 0.0,
            "seconds": 0.0,
            "waited": 0.0,
            "before": None,
            "best": None,
        }
        self._held: HeldOut | None = None

    def run(self) -> dict[str, Any]:
        """Train to the last step.

        Returns:
            The result, which worker 0 also writes to the run's folder. If the run is stopped before
            its end, `{"stopped": steps taken}`.

        Raises:
            TrainingError: the folder holds another run, another job took it over, or the loss is
                not finite.
            CheckpointError: there are checkpoints, and all are damaged.
            StorageError: a checkpoint could not be written.
        """
        plan = self.materials.plan
        # The reference is the initial model, so its pass runs before a checkpoint is loaded.
        sweep_loss = self._losses.of(plan.sweep(EXAMPLES_PER_SWEEP_STEP))
        self._held = self._held_out()
        self._resume()
        if self._held and self._progress["before"] is None:
            self._progress["before"] = self._measure(self._held)
        self._began = time.monotonic() - self._progress["seconds"]
        self._bar = ProgressBar(self.task.job, plan.num_steps, start=self._step)
        self._train(sweep_loss)
        if self._notices.stopped and self._step < plan.num_steps:
            self._saver.wait()
            return {"stopped": self._step}
        result = self._result()
        self._saver.wait()
        from_first(lambda: write_result(self.task.folder, result))
        return result

    def _train(self, sweep_loss: SweepLoss) -> None:
        """Take the remaining steps; none if the run has already ended early."""
        if self._patience_exhausted():
            return
        try:
            train(
                self.engine,
                self.materials.plan,
                sweep_loss.reader,
                sweep_loss.loss,
                optimizer=self.task.config.optimizer,
                after_step=self._after_step,
                start=self._step,
            )
        except TrainingError as error:
            if error.on_every_worker:
                self._saver.wait()  # so that the checkpoint before the error is complete
            raise

    def _held_out(self) -> HeldOut | None:
        if self.materials.held_out is None:
            return None
        sweep_loss = self._losses.of(self.materials.held_out)
        metric, known = self.task.config.held_out.best_metric, (LOSS, *sweep_loss.loss.metrics)
        if metric is not None and metric not in known:
            problem = f"held_out.best_metric {metric!r} is not measured, only {', '.join(known)}"
            raise met_by_all(TrainingError(problem))
        return HeldOut(self.engine, sweep_loss)

    def _after_step(self, step: int, metrics: Metrics) -> bool:
        """Log the step, and measure and save if due. Returns whether to stop."""
        config = self.task.config
        self._log(step, metrics)
        last = step == self.materials.plan.num_steps
        better = bool(self._held) and (last or _due(step, config.held_out.every_steps))
        better = better and self._judge(step)
        urgent = self._notices.urgent(step)
        stop = last or self._patience_exhausted() or self._notices.stopped
        if stop or better or urgent or _due(step, config.checkpoint.every_steps):
            self._save(step)
        return stop

    def _judge(self, step: int) -> bool:
        """Measure, and return whether the best metric improved."""
        assert self._held is not None
        metrics = self._measure(self._held)
        metric = self.task.config.held_out.best_metric
        if metric is None:
            return False
        best = Best.from_plain(self._progress["best"])
        best = next_best(best, metric, metrics[metric], step)
        self._progress["best"] = best.to_plain()
        return best.step == step

    def _patience_exhausted(self) -> bool:
        best = Best.from_plain(self._progress["best"])
        return best is not None and best.patience_exhausted(self.task.config.held_out.patience)

    def _resume(self) -> None:
        """Continue from the newest undamaged checkpoint. Without one, start at step 0."""
        folder = agree_on_checkpoint(self.engine, self._checkpoints)
        if folder is None:
            return
        manifest, kept = from_first(lambda: (read_manifest(folder), saved_steps(self._checkpoints)))
        all_or_none(lambda: check_identity(manifest, self._identity, self._checkpoints))
        load_checkpoint(self.engine, folder)
        self._progress = dict(manifest["progress"])
        self._step = manifest["step"]
        best = self._progress["best"]
        if best is not None and best["step"] not in kept:
            # Later checkpoints would have to beat one that can no longer be exported.
            logger.warning("the best checkpoint, of step %d, is gone", best["step"])
            self._progress["best"] = None

    def _log(self, step: int, metrics: Metrics) -> None:
        self._step = step
        self._progress["loss"] = metrics[LOSS]
        self._progress["tokens"] += metrics[TOKENS]
        self._progress["waited"] += metrics[WAITED]
        self._progress["seconds"] = time.monotonic() - self._began
        if self.engine.rank == 0:
            self._bar.update(step, loss=metrics[LOSS], tokens=metrics[TOKENS])
            values = {**metrics, WORKERS: float(self.engine.world_size)}
            self._track({f"train/{name}": value for name, value in values.items()}, step)

    def _track(self, values: Mapping[str, float], step: int) -> None:
        if self._tracker:
            self._tracker.log_metrics(values, step)

    def _save(self, step: int) -> None:
        # A resumed run does not repeat the steps before the checkpoint, so their metrics must be
        # written now.
        if self._tracker:
            self._tracker.flush()
        self._saver.save(step, self._progress)

    def _measure(self, held: HeldOut) -> Metrics:
        """The held-out metrics of the current step, tracked once per step."""
        known = held.has_measured(self._step)
        metrics = held.metrics(self._step)
        if self.engine.rank == 0 and not known:
            self._track({f"held_out/{name}": value for name, value in metrics.items()}, self._step)
        return metrics

    def _result(self) -> dict[str, Any]:
        progress, plan, held = self._progress, self.materials.plan, self._held
        held_out = order = None
        if held is not None:
            held_out = {"before": progress["before"], "after": self._measure(held)}
            order = held.order(self._step)
        return {
            "job": self.task.job,
            "steps": self._step,
            "loss": progress["loss"],
            "ended": self._ended(),
            "best": progress["best"],
            "held_out": held_out,
            "pair_order": order,
            "seconds": progress["seconds"],
            "waited_share": progress["waited"] / max(progress["seconds"], 1e-9),
            "tokens": progress["tokens"],
            TOKENS_PER_SECOND: progress["tokens"] / max(progress["seconds"], 1e-9),
            "optimizer": type(self.engine.optimizer).__name__,
            "workers": self.engine.world_size,
            "parameters": sum(math.prod(shape) for shape in self.engine.shapes().values()),
            "layout": self.task.layout,
            "dtype": self.task.dtype,
            "examples": plan.selection.ledger,
        }

    def _ended(self) -> str:
        """Why the run ended."""
        best = self._progress["best"]
        if self._step == self.materials.plan.num_steps:
            return "took every step"
        return (
            f"held_out.{best['metric']} did not get better in {best['measured_since']} "
            f"measurements after step {best['step']}"
        )


def _due(step: int, every_steps: int | None) -> bool:
    return every_steps is not None and step % every_steps == 0
