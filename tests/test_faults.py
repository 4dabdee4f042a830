"""Workers and nodes are lost at any moment; the curve is the undisturbed one."""

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from metaalign.config import SFTConfig
from metaalign.store.token_store import TokenStore
from metaalign.tracking import open_run
from metaalign.train.checkpoints.history import saved_steps
from metaalign.train.checkpoints.notices import STOP_FILE
from metaalign.train.launch.on_ray import run_sft
from tests.local_cluster import (
    LocalCluster,
    kill,
    local_cluster,
    meanwhile,
    newest_step,
    train_workers,
    training_group,
    until,
)
from tests.tiny_task import settings_of

pytestmark = pytest.mark.slow

MAX_STEPS = 5000
"""Of a run that is stopped when it has shown what it should: it would end by itself in minutes."""


@pytest.fixture(scope="module")
def storage(
    tmp_path_factory: pytest.TempPathFactory, make_store: Callable[..., TokenStore]
) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    make_store(folder / "store")
    return folder


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with local_cluster(2) as found:
        yield found


def config_of(storage: Path, output: str, steps: int, **changed: Any) -> SFTConfig:
    settings = {
        "length": {"epochs": None, "max_steps": steps},
        "checkpoint": {"every_steps": 5, "keep": 2},
        "workers": {"num_workers": [1, 2], "resize_interval_s": 2, "max_failures": 100},
        **changed,
    }
    return SFTConfig.model_validate(settings_of(storage, output=output, **settings))


def curves(
    storage: Path, config: SFTConfig, *, stopped: bool = False
) -> dict[int, list[tuple[float, int]]]:
    """Loss and number of workers each time a step was logged, from a run's MLflow store.

    Args:
        stopped: Whether the run is told to stop, instead of taking every step.
    """
    with open_run(config.tracking, storage=str(storage), name=config.output) as run:
        if stopped:
            with pytest.raises(SystemExit):
                run_sft(config, run)
        else:
            assert run_sft(config, run)["steps"] == config.length.max_steps
    client = MlflowClient(run.uri)
    losses = client.get_metric_history(run.id, "train/loss")
    workers = client.get_metric_history(run.id, "train/workers")
    found: dict[int, list[tuple[float, int]]] = {}
    for loss, count in zip(losses, workers, strict=True):
        assert loss.step == count.step
        found.setdefault(loss.step, []).append((loss.value, int(count.value)))
    assert sorted(found) == list(range(1, len(found) + 1))
    return found


def stop(run_folder: Path) -> None:
    run_folder.mkdir(exist_ok=True)
    (run_folder / STOP_FILE).touch()


def test_a_run_goes_on_with_what_is_left_and_grows_when_a_node_returns(
    cluster: LocalCluster, storage: Path
) -> None:
    folder = storage / "elastic"

    def disturb() -> None:
        try:
            group = training_group(folder, size=2)
            cluster.lose_node(group[-1])
            try:
                wait_for_the_end_of(group)
                training_group(folder, size=1)
            finally:
                cluster.add_node()
            training_group(folder, size=2)
        finally:
            stop(folder)

    with meanwhile(disturb):
        found = curves(storage, config_of(storage, "elastic", MAX_STEPS), stopped=True)
    taken = [points[-1][1] for _, points in sorted(found.items())]
    assert taken[0] == taken[-1] == 2
    assert 1 in taken


def test_the_curve_of_a_run_with_twelve_kills_is_the_undisturbed_one(
    cluster: LocalCluster, storage: Path
) -> None:
    """Ten workers and two nodes, at moments drawn by seed: while they train, save or start."""
    fixed = {"num_workers": 2}
    undisturbed = curves(storage, config_of(storage, "undisturbed", 200, workers=fixed))
    assert [len(points) for points in undisturbed.values()] == [1] * 200
    killed: list[str] = []
    with meanwhile(lambda: disturb_at_random(cluster, storage / "disturbed", killed)):
        found = curves(storage, config_of(storage, "disturbed", 200))
    assert sorted(killed) == ["node"] * 2 + ["starting"] * 5 + ["training"] * 5
    assert sorted(found) == sorted(undisturbed) == list(range(1, 201))
    assert [len(points) for points in found.values()] == [1] * 200, "logged again"
    for step, points in found.items():
        ((expected, _),) = undisturbed[step]
        # On one worker sums are taken in another order; all that follows carries the difference.
        assert [loss for loss, _ in points] == pytest.approx([expected] * len(points), abs=1e-5)
    alone = [step for step, points in found.items() for _, count in points if count == 1]
    untouched = range(1, min(alone, default=201))
    assert all(loss == undisturbed[step][0][0] for step in untouched for loss, _ in found[step])
    assert len(untouched) > 0


def disturb_at_random(cluster: LocalCluster, run_folder: Path, killed: list[str]) -> None:
    """Seven times something is killed that trains: a worker, twice the node that it is on.

    After five of them a worker of the next attempt is killed while it starts. A node comes back
    10 s later. `killed` gets a word for each kill.
    """
    draw = random.Random(0)
    for number, moment in enumerate(sorted(draw.sample(range(10, 150), 7))):
        until(lambda moment=moment: newest_step(run_folder) >= moment, 120, f"step {moment}")
        victim = training_victim(run_folder, draw)
        began, node = time.monotonic(), number in (1, 4)
        group = train_workers()
        if node:
            cluster.lose_node(victim)
        else:
            assert kill(victim)
        killed.append("node" if node else "training")
        wait_for_the_end_of(group)
        if number < 5:
            kill_starting(run_folder, draw)
            killed.append("starting")
        if node:
            time.sleep(max(0.0, began + 10 - time.monotonic()))
            cluster.add_node()


def training_victim(run_folder: Path, draw: random.Random) -> int:
    """A worker of the group that trains, a moment after it completed a checkpoint."""
    while True:
        victim = draw.choice(training_group(run_folder))
        time.sleep(draw.uniform(0, 0.2))
        if victim in train_workers():  # the group may have grown in this moment
            return victim


def wait_for_the_end_of(group: list[int]) -> None:
    """Those left may still complete the checkpoint that they were writing, which is no training."""
    until(lambda: not set(group) & set(train_workers()), 120, "the end of the workers left")


def kill_starting(run_folder: Path, draw: random.Random) -> None:
    """Kill a worker of the next group, which has not trained to a checkpoint yet."""
    newest = newest_step(run_folder)
    until(train_workers, 120, "a worker that starts")
    time.sleep(draw.uniform(0, 3))
    assert kill(draw.choice(until(train_workers, 120, "a worker that starts")))
    assert newest_step(run_folder) == newest


def test_a_node_that_will_be_preempted_leaves_a_checkpoint_while_it_is_there(
    cluster: LocalCluster, storage: Path
) -> None:
    # No step within the run is a multiple of both, so a notice's checkpoint is told from others.
    every_steps, notice_steps = 97, 53
    assert every_steps * notice_steps > MAX_STEPS
    folder, notice_s = storage / "preempted", 60
    waited_s: list[float] = []

    def preempt() -> None:
        try:
            training_group(folder, size=2)  # one on each node
            cluster.preempt_node(notice_s)
            told_at = time.monotonic()
            until(lambda: any(step % every_steps for step in saved_steps(folder)), 60, "a save")
            waited_s.append(time.monotonic() - told_at)
        finally:
            stop(folder)

    checkpoint = {"every_steps": every_steps, "keep": 2, "notice_steps": notice_steps}
    config = config_of(storage, "preempted", MAX_STEPS, checkpoint=checkpoint)
    with meanwhile(preempt), pytest.raises(SystemExit):
        run_sft(config)
    print(f"saved {waited_s[0]:.1f} s after the notice")
    assert waited_s[0] < notice_s / 2
