"""Where a job trains: what the nodes have room for, and what is refused."""

from typing import Any

import pytest
import ray

from metaalign.config.sections import WorkersConfig
from metaalign.errors import ConfigError
from metaalign.train.launch.devices import choose_device


def cluster(monkeypatch: pytest.MonkeyPatch, *nodes: dict[str, float]) -> None:
    known: list[dict[str, Any]] = [{"Alive": True, "Resources": node} for node in nodes]
    known.append({"Alive": False, "Resources": {"CPU": 64, "GPU": 8}})
    monkeypatch.setattr(ray, "nodes", lambda: known)


def test_workers_take_gpus_where_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(monkeypatch, {"CPU": 8, "GPU": 2}, {"CPU": 8})
    assert choose_device(WorkersConfig(num_workers=2)) == "cuda"
    assert choose_device(WorkersConfig(num_workers=2, gpu="never")) == "cpu"
    with pytest.raises(ConfigError, match="each takes a GPU, and the cluster has 2"):
        choose_device(WorkersConfig(num_workers=3))


def test_a_worker_must_fit_on_one_node(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(monkeypatch, {"CPU": 4}, {"CPU": 4})
    assert choose_device(WorkersConfig(num_workers=2, cpus_per_worker=4)) == "cpu"
    with pytest.raises(ConfigError, match=r"8 on 2 node\(s\), with room for 0 such"):
        choose_device(WorkersConfig(num_workers=1, cpus_per_worker=6))


def test_a_share_of_a_cpu_is_counted_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(monkeypatch, {"CPU": 1})
    assert choose_device(WorkersConfig(num_workers=5, cpus_per_worker=0.2)) == "cpu"
    with pytest.raises(ConfigError, match="room for 5"):
        choose_device(WorkersConfig(num_workers=6, cpus_per_worker=0.2))


def test_gpus_without_cpus_beside_them_are_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(monkeypatch, {"CPU": 1, "GPU": 4}, {"CPU": 64})
    with pytest.raises(ConfigError, match="room for 1 such"):
        choose_device(WorkersConfig(num_workers=4))


def test_always_waits_for_nodes_that_are_yet_to_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cluster(monkeypatch, {"CPU": 8})
    assert choose_device(WorkersConfig(num_workers=8, gpu="always")) == "cuda"
    assert "0 of 8 workers have room now" in caplog.text


def test_the_fewest_workers_must_have_room(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(monkeypatch, {"CPU": 1}, {"CPU": 1})
    assert choose_device(WorkersConfig(num_workers=(2, 8))) == "cpu"
    with pytest.raises(ConfigError, match=r"num_workers 3 at .* room for 2"):
        choose_device(WorkersConfig(num_workers=(3, 8)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_workers": [4, 1]}, r"num_workers \[4, 1\] must be the smallest and the largest"),
        ({"num_workers": [2, 2]}, "must be the smallest and the largest number, or one number"),
        ({"num_workers": [0, 2]}, "greater than or equal to 1"),
        ({"num_workers": 2, "resize_interval_s": 5}, "has no effect on a fixed num_workers"),
    ],
)
def test_numbers_of_workers_that_mean_nothing_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        WorkersConfig.model_validate(settings)
