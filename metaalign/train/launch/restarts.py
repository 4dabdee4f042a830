"""Handles lost and returning workers in the process of Ray Train's controller.

Imports no model code, so the controller does not load it.
"""

import sys
import time

from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.controller.state import (
    PreemptingState,
    ReschedulingState,
    ResizingState,
    RestartingState,
    RunningState,
    SchedulingState,
    TrainControllerState,
)
from ray.train.v2._internal.execution.scaling_policy import ResizeDecision
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError

WAITING_INTERVAL_S = 60.0
"""Seconds between two lines that say that there is still no room."""


class ReleasingWorkerGroup(WorkerGroup):
    """Releases all workers if one of them dies while they start, and counts it as a failure.

    If a worker dies after the contexts of all exist, as in `init_process_group`, Ray 2.60 keeps
    their placement group: `_start` treats the workers as started, nothing removes them, and every
    later attempt waits for room forever. If another worker reports the death first, or the worker
    dies at the launch of the training function, Ray does not retry the error and the job ends.
    Removable with the first Ray whose `WorkerGroup._start` cleans up and raises a retryable error
    in all these cases; tests/test_on_ray.py kills a worker in each.
    """

    def _start(self) -> None:
        try:
            super()._start()
        except (RayError, WorkerGroupStartupFailedError) as error:
            if self.has_started():
                self.shutdown()
            cause = error.__cause__ if isinstance(error, WorkerGroupStartupFailedError) else error
            failures = {0: cause if isinstance(cause, Exception) else error}
            raise WorkerGroupError(f"while the workers started: {error}", failures) from error


class Restarts(ControllerCallback):
    """Installs `ReleasingWorkerGroup`, and prints every failure, restart and resize.

    sft: a worker was lost: ActorDiedError: The actor died unexpectedly before finishing this task.
    sft: trains on 1 worker(s), from the last checkpoint
    """

    def __init__(self, job: str) -> None:
        self._job = job
        self._workers = 0
        self._printed_at = time.monotonic()

    def after_controller_start(self, train_run_context: TrainRunContext) -> None:  # noqa: ARG002
        """Called in the controller's process before it starts the first workers."""
        TrainController.worker_group_cls = ReleasingWorkerGroup

    def after_controller_state_update(
        self, previous_state: TrainControllerState, current_state: TrainControllerState
    ) -> None:
        """Called at every change of state, and with the same state at every check for room."""
        if current_state is not previous_state:
            self._print(self._describe_change(previous_state, current_state))
        elif time.monotonic() - self._printed_at > WAITING_INTERVAL_S:
            self._print("waits for room for its workers")

    def _describe_change(
        self, before: TrainControllerState, now: TrainControllerState
    ) -> str | None:
        if isinstance(now, (RestartingState, ReschedulingState)):
            return describe(now.training_failed_error)
        if isinstance(now, PreemptingState) and not isinstance(before, PreemptingState):
            return f"the node of worker(s) {now.preemption_info.preempted_ranks} will be taken away"
        if isinstance(now, ResizingState) and isinstance(now.scaling_decision, ResizeDecision):
            return f"there is room for {now.scaling_decision.num_workers} workers"
        if isinstance(before, SchedulingState) and isinstance(now, RunningState):
            assert isinstance(before.scaling_decision, ResizeDecision)
            first, self._workers = not self._workers, before.scaling_decision.num_workers
            origin = "" if first else ", from the last checkpoint"
            return f"trains on {self._workers} worker(s){origin}"
        return None

    def _print(self, line: str | None) -> None:
        if line is None:
            return
        self._printed_at = time.monotonic()
        sys.stderr.write(f"{self._job}: {line}\n")
        sys.stderr.flush()


def describe(error: TrainingFailedError) -> str:
    """One line on what ended the last attempt. If several workers failed, one that died is
    preferred."""
    if isinstance(error, WorkerGroupError):
        causes = [_unwrap(failure) for failure in error.worker_failures.values()]
        causes.sort(key=lambda cause: not isinstance(cause, RayActorError))
        how = "was lost" if isinstance(causes[0], RayActorError) else "failed"
        return f"a worker {how}: {_headline(causes[0])}"
    if isinstance(error, ControllerError):
        if isinstance(error.controller_failure, WorkerGroupStartupTimeoutError):
            return f"no room yet for {error.controller_failure.num_workers} worker(s)"
        return _headline(error.controller_failure)
    return _headline(error)


def _unwrap(failure: Exception) -> BaseException:
    if isinstance(failure, WorkerHealthCheckFailedError):
        failure = failure.health_check_failure
    return failure.cause if isinstance(failure, RayTaskError) else failure


def _headline(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
