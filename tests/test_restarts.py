"""What the controller tells when workers are lost, start again or come back."""

from itertools import pairwise

import pytest
from ray.exceptions import ActorDiedError
from ray.train import ControllerError, PreemptionError, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.controller.state import (
    InitializingState,
    PreemptingState,
    ReschedulingState,
    ResizingState,
    RestartingState,
    RunningState,
    SchedulingState,
)
from ray.train.v2._internal.execution.preemption import PreemptionInfo
from ray.train.v2._internal.execution.scaling_policy import ResizeDecision

from metaalign.train.launch import restarts
from metaalign.train.launch.restarts import Restarts, describe

DIED = "ActorDiedError: The actor died unexpectedly before finishing this task."


def lost() -> WorkerGroupError:
    """A worker that failed because the other one died, and the other one."""
    died = WorkerHealthCheckFailedError("a health check failed", failure=ActorDiedError())
    return WorkerGroupError("two lines\nof Ray's", {0: RuntimeError("connection closed"), 1: died})


def test_the_worker_that_died_is_told_of_before_those_that_only_noticed() -> None:
    assert describe(lost()) == f"a worker was lost: {DIED}"
    alone = WorkerGroupError("", {0: RuntimeError("first\nsecond")})
    assert describe(alone) == "a worker failed: RuntimeError: first"


def test_other_ends_of_an_attempt_are_told_in_one_line() -> None:
    timeout = ControllerError(WorkerGroupStartupTimeoutError(3))
    assert describe(timeout) == "no room yet for 3 worker(s)"
    assert describe(ControllerError(ValueError("no such thing"))) == "ValueError: no such thing"
    preempted = PreemptionError(PreemptionInfo(None, {"node": [1]}))
    assert describe(preempted).startswith("PreemptionError: Training was interrupted")


def test_each_failure_restart_and_resize_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (SchedulingState(ResizeDecision(n, {"CPU": 1})) for n in (1, 2))
    running, grown = RunningState(), ResizingState(two.scaling_decision)
    states = [
        InitializingState(),
        two,
        running,
        RestartingState(lost()),
        one,
        ReschedulingState(ControllerError(WorkerGroupStartupTimeoutError(1))),
        one,
        running,
        grown,
        two,
        running,
    ]
    leaving = PreemptionInfo(None, {"node": [1]})
    states += [PreemptingState(leaving, 0.0), PreemptingState(leaving, 0.0)]  # one for each look
    callback = Restarts("sft")
    for before, now in pairwise(states):
        callback.after_controller_state_update(before, now)
    assert capsys.readouterr().err.splitlines() == [
        "sft: trains on 2 worker(s)",
        f"sft: a worker was lost: {DIED}",
        "sft: no room yet for 1 worker(s)",
        "sft: trains on 1 worker(s), from the last checkpoint",
        "sft: there is room for 2 workers",
        "sft: trains on 2 worker(s), from the last checkpoint",
        "sft: the node of worker(s) [1] will be taken away",
    ]


def test_a_long_wait_is_told_of_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting = RestartingState(lost())
    callback = Restarts("sft")
    callback.after_controller_state_update(waiting, waiting)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(restarts, "WAITING_INTERVAL_S", 0)
    callback.after_controller_state_update(waiting, waiting)
    assert capsys.readouterr().err == "sft: waits for room for its workers\n"
