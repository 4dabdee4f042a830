"""A worker's part in a run, timed from outside by when its steps are logged.

    torchrun --nproc-per-node 2 -m tests.benchmarks.timed_run TASK.json

writes TASK.timing.json. Knows no Ray: the benchmark of orchestration calls it in Ray's workers too.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from metaalign.train.engines.starting import start_engine
from metaalign.train.launch.standalone import join_workers
from metaalign.train.loop.training_loop import LOSS, WAITED
from metaalign.train.task import Task
from metaalign.train.worker import Tracker, TrainingRun


class StepTimes:
    """A tracker that notes when each step ended, before it hands the point on."""

    def __init__(self, inner: Tracker | None) -> None:
        self.ended: list[float] = []
        self.waited: list[float] = []
        """Before each step and in it, what was done after the step before included."""
        self.loss = float("nan")
        self._inner = inner

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        if f"train/{WAITED}" in values:
            self.ended.append(time.perf_counter())
            self.waited.append(values[f"train/{WAITED}"])
            self.loss = values[f"train/{LOSS}"]
        if self._inner:
            self._inner.log_metrics(values, step)

    def flush(self) -> None:
        if self._inner:
            self._inner.flush()


def timing_of(
    *, ended: list[float], waited: list[float], returned: float, loss: float
) -> dict[str, Any]:
    """What a run took after its first step, which also warms up.

    Args:
        ended: When each step ended, before anything was done after it, in seconds.
        waited: Of each step, before it and in it.
        returned: When the run was over, after the hooks of its last step.

    Returns:
        steps_s to the end of the last step; run_s to the end of the run; overhead_s, what was not
        spent on steps until then.
    """
    return {
        "steps": len(ended) - 1,
        "steps_s": ended[-1] - ended[0],
        "run_s": returned - ended[0],
        "overhead_s": sum(waited[1:]) + returned - ended[-1],
        "loss": loss,
    }


def timed_run(
    task: Task, *, tracker: Tracker | None, leaving: Callable[[], bool] | None = None
) -> dict[str, Any]:
    """Train as the job does; `timing_of` this worker. `torch.distributed` must be up."""
    torch.set_num_threads(1)
    engine = start_engine(task, torch.device("cpu"))
    times = StepTimes(tracker)
    TrainingRun(task, engine, tracker=times, leaving=leaving).run()
    returned = time.perf_counter()
    if engine.rank:
        return {}  # worker 0 alone logs its steps
    return timing_of(ended=times.ended, waited=times.waited, returned=returned, loss=times.loss)


def main() -> None:
    file = Path(sys.argv[1])
    task = Task.from_plain(json.loads(file.read_text(encoding="utf-8")))
    join_workers(task.device_type)
    timing = timed_run(task, tracker=None)
    if timing:
        file.with_suffix(".timing.json").write_text(json.dumps(timing), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
