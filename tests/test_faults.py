"""Workers and nodes are lost at any moment; the curve is the undisturbed one."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from metaalign.config import SFTConfig
from metaalign.data.store import TokenStore
from metaalign.tracking import open_run
from metaalign.train.history import saved_steps
from metaalign.train.notices import STOP_FILE
from metaalign.train.trainer import run_sft
from tests.local_cluster import LocalCluster, local_cluster
from tests.tiny_task import settings_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def storage(
    tmp_path_factory: pytest.TempPathFactory, make_store: Callable[..., TokenStore]
) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    make_store(folder / "store")
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with local_cluster(2) as found:
        yield found


def config_of(storage: Path, output: str, steps: int, **changed: Any) -> SFTConfig:
    workers = {"num_workers": [1, 2], "resize_interval_s": 2, "max_failures": 100}
    settings = settings_of(
        storage,
        output=output,
        length={"epochs": None, "max_steps": steps},
        checkpoint={"every_steps": 5, "keep": 2},
        workers=workers,
        **changed,
    )
    return SFTConfig.model_validate(settings)


def curves(storage: Path, config: SFTConfig) -> dict[int, list[tuple[float, int]]]:
    """Loss and number of workers each time a step was taken, from a run's MLflow store."""
    with open_run(config.tracking, storage=str(storage), name=config.output) as run:
        result = run_sft(config, run)
    assert result["steps"] == config.length.max_steps
    client = MlflowClient(run.uri)
    losses = client.get_metric_history(run.id, "train/loss")
    workers = client.get_metric_history(run.id, "train/workers")
    found: dict[int, list[tuple[float, int]]] = {}
    for loss, count in zip(losses, workers, strict=True):
        assert loss.step == count.step
        found.setdefault(loss.step, []).append((loss.value, int(count.value)))
    return found


def wait_for_step(storage: Path, output: str, step: int) -> None:
    """Until there is a checkpoint of at least this many steps."""
    while max(saved_steps(storage / output), default=0) < step:
        time.sleep(0.02)


def test_a_run_goes_on_with_what_is_left_and_grows_when_a_node_returns(
    cluster: LocalCluster, storage: Path
) -> None:
    def disturb() -> None:
        wait_for_step(storage, "elastic", 20)
        cluster.lose_node()
        wait_for_step(storage, "elastic", max(saved_steps(storage / "elastic")) + 10)
        cluster.add_node()

    threading.Thread(target=disturb, daemon=True).start()
    found = curves(storage, config_of(storage, "elastic", 500))
    taken = [points[-1][1] for _, points in sorted(found.items())]
    assert taken[0] == taken[-1] == 2
    assert 1 in taken


def test_the_curve_of_a_run_with_twelve_kills_is_the_undisturbed_one(
    cluster: LocalCluster, storage: Path
) -> None:
    """Ten workers and two nodes, at moments drawn by seed: while they train, save or start."""
    undisturbed = curves(storage, config_of(storage, "undisturbed", 200))
    assert [len(points) for points in undisturbed.values()] == [1] * 200
    killed: list[int] = []
    over = threading.Event()
    disturber = threading.Thread(
        target=disturb_at_random, args=(cluster, storage / "disturbed", killed, over), daemon=True
    )
    disturber.start()
    found = curves(storage, config_of(storage, "disturbed", 200))
    over.set()
    disturber.join()
    assert len(killed) == 12, killed
    assert sorted(found) == sorted(undisturbed) == list(range(1, 201))
    assert sum(len(points) for points in found.values()) > 200
    for step, points in found.items():
        ((expected, _),) = undisturbed[step]
        # On one worker sums are taken in another order; all that follows carries the difference.
        assert [loss for loss, _ in points] == pytest.approx([expected] * len(points), abs=1e-5)
    alone = [step for step, points in found.items() for _, count in points if count == 1]
    untouched = range(1, min(alone, default=201))
    assert all(loss == undisturbed[step][0][0] for step in untouched for loss, _ in found[step])
    assert len(untouched) > 0


def disturb_at_random(
    cluster: LocalCluster, folder: Path, killed: list[int], over: threading.Event
) -> None:
    """Four bursts of three kills, twice of a node at first, which comes back 10 s later.

    The first of a burst meets workers that train or save, the others mostly workers that start.
    """
    draw = random.Random(0)
    for number, moment in enumerate(sorted(draw.sample(range(10, 190), 4))):
        while max(saved_steps(folder), default=0) < moment // 5 * 5 and not over.is_set():
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.4))
        for kill in range(3):
            if number % 2 and kill == 0:
                cluster.lose_node()
                threading.Timer(10, cluster.add_node).start()
            else:
                while not cluster.kill_worker() and not over.is_set():
                    time.sleep(0.05)
            killed.append(max(saved_steps(folder)))
            time.sleep(draw.uniform(0, 6))


def test_a_node_that_will_be_preempted_leaves_a_checkpoint_while_it_is_there(
    cluster: LocalCluster, storage: Path
) -> None:
    notice_s = 60

    def preempt() -> None:
        wait_for_step(storage, "preempted", 50)
        cluster.preempt_node(notice_s)
        told_at.append(time.monotonic())
        while not any(step % 50 for step in saved_steps(storage / "preempted")):
            time.sleep(0.05)
        saved_at.append(time.monotonic())
        (storage / "preempted" / STOP_FILE).touch()

    told_at: list[float] = []
    saved_at: list[float] = []
    threading.Thread(target=preempt, daemon=True).start()
    config = config_of(storage, "preempted", 100_000)
    checkpoint = {"every_steps": 50, "keep": 2, "notice_steps": 7}
    config = SFTConfig.model_validate({**config.model_dump(), "checkpoint": checkpoint})
    with pytest.raises(SystemExit):
        run_sft(config)
    print(f"saved {saved_at[0] - told_at[0]:.1f} s after the notice")
    assert saved_at[0] - told_at[0] < notice_s / 2
