"""What Ray Train's controller does when workers are lost or come back, in its own process.

Knows no model, so that the controller need not load one.
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
"""Between two lines that say that there is still no room."""


class ReleasingWorkerGroup(WorkerGroup):
    """Workers that are let go when one of them dies while they start, which counts as a failure.

    Ray 2.60 keeps their placement group where that happens after their contexts are made, as in
    `init_process_group`: `_start` takes them for started, nobody removes them, and no attempt
    finds room again, without an end. Where another worker tells of the death first, or it falls
    on the launch of the training function, the error is none that Ray tries again, and the job
    ends. Removable with the first Ray whose `WorkerGroup._start` cleans up and raises one error
    that can be tried again in all these cases; tests/test_on_ray.py kills a worker in each.
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
    """Lets workers go that die while they start, and tells of every failure, restart and resize.

    sft: a worker was lost: ActorDiedError: The actor died unexpectedly before finishing this task.
    sft: trains on 1 worker(s), from the last checkpoint
    """

    def __init__(self, job: str) -> None:
        self._job = job
        self._workers = 0
        self._told_at = time.monotonic()

    def after_controller_start(self, train_run_context: TrainRunContext) -> None:  # noqa: ARG002
        """In the controller's process, before it starts the first workers."""
        TrainController.worker_group_cls = ReleasingWorkerGroup

    def after_controller_state_update(
        self, previous_state: TrainControllerState, current_state: TrainControllerState
    ) -> None:
        """The controller sets its state anew each time that it looks whether there is room."""
        if current_state is not previous_state:
            self._tell(self._line(previous_state, current_state))
        elif time.monotonic() - self._told_at > WAITING_INTERVAL_S:
            self._tell("waits for room for its workers")

    def _line(self, before: TrainControllerState, now: TrainControllerState) -> str | None:
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

    def _tell(self, line: str | None) -> None:
        if line is None:
            return
        self._told_at = time.monotonic()
        sys.stderr.write(f"{self._job}: {line}\n")
        sys.stderr.flush()


def describe(error: TrainingFailedError) -> str:
    """One line on what ended the last attempt; of several workers, on one that died itself."""
    if isinstance(error, WorkerGroupError):
        causes = [_unwrapped(failure) for failure in error.worker_failures.values()]
        causes.sort(key=lambda cause: not isinstance(cause, RayActorError))
        how = "was lost" if isinstance(causes[0], RayActorError) else "failed"
        return f"a worker {how}: {_headline(causes[0])}"
    if isinstance(error, ControllerError):
        if isinstance(error.controller_failure, WorkerGroupStartupTimeoutError):
            return f"no room yet for {error.controller_failure.num_workers} worker(s)"
        return _headline(error.controller_failure)
    return _headline(error)


def _unwrapped(failure: Exception) -> BaseException:
    if isinstance(failure, WorkerHealthCheckFailedError):
        failure = failure.health_check_failure
    return failure.cause if isinstance(failure, RayTaskError) else failure


def _headline(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
