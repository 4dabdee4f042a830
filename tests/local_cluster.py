"""A Ray cluster of several nodes on this machine, whose nodes and workers can be lost.

And what a test needs that disturbs a run: every wait ends, and so does every thread.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason

from metaalign.train.checkpoints.history import saved_steps

T = TypeVar("T")

FAST_DETECTION = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 4,
}
"""A lost node is noticed within seconds."""


FAST_RESTART = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # A group that was to start on a node that is gone is given up.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "2",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5",
}
"""Ray Train's waits, which suit a cluster of machines."""


class LocalCluster:
    """A head without CPUs, and nodes of one CPU each."""

    def __init__(self, num_nodes: int) -> None:
        head = {"num_cpus": 0, "_system_config": FAST_DETECTION, "include_dashboard": False}
        # Its handlers for the end of the process could be set in the main thread alone.
        self._cluster = Cluster(
            initialize_head=True, connect=False, head_node_args=head, shutdown_at_exit=False
        )
        self._nodes: list[Any] = []
        for _ in range(num_nodes):
            self.add_node()
        self.address = self._cluster.address

    def add_node(self) -> None:
        self._nodes.append(self._cluster.add_node(num_cpus=1))

    def lose_node(self, worker: int) -> None:
        """All processes of the node that a worker runs on are killed."""
        (node,) = [node for node in self._nodes if parent_of(worker) == raylet_of(node)]
        self._nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    def preempt_node(self, notice_s: float) -> None:
        """Announce that the newest node will be taken away in so many seconds."""
        deadline_ms = int((time.time() + notice_s) * 1000)
        client = GcsClient(address=self._cluster.gcs_address)
        preemption = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        accepted, reason = client.drain_node(
            self._nodes[-1].node_id, preemption, "preempted by a test", deadline_ms
        )
        assert accepted, reason

    def shutdown(self) -> None:
        self._cluster.shutdown()


def raylet_of(node: Any) -> int:
    (raylet,) = node.all_processes["raylet"]
    return raylet.process.pid


def parent_of(process: int) -> int | None:
    """None where the process is gone."""
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def train_workers() -> list[int]:
    """Processes of Ray Train's workers on the nodes that this process started and did not lose."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        process = int(folder.name)
        try:
            name = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        raylet = parent_of(process) if name.startswith(b"ray::RayTrainWorker") else None
        if raylet is not None and parent_of(raylet) == os.getpid():
            found.append(process)
    return sorted(found)


def kill(process: int) -> bool:
    """SIGKILL; False where it was gone already."""
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def newest_step(run_folder: Path) -> int:
    """Of the complete checkpoints; 0 for none."""
    return max(saved_steps(run_folder), default=0)


def training_group(run_folder: Path, *, size: int | None = None, seconds: float = 180) -> list[int]:
    """The workers that train now: the same processes before and after a checkpoint is completed.

    It was written while they went on, so they are past it.

    Args:
        size: How many there are to be.
    """
    deadline = time.monotonic() + seconds
    while True:
        group, newest = train_workers(), newest_step(run_folder)
        left_s = deadline - time.monotonic()
        until(lambda newest=newest: newest_step(run_folder) > newest, left_s, "a checkpoint")
        if group and group == train_workers() and size in (None, len(group)):
            return group


def until(condition: Callable[[], T], seconds: float, what: str) -> T:
    """Wait for a value that is true, and return it.

    Raises:
        TimeoutError: there was none in so many seconds.
    """
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited for {what} without end")
        time.sleep(0.02)
    return found


@contextmanager
def meanwhile(action: Callable[[], object]) -> Iterator[None]:
    """Do something in a thread beside the block; both have ended afterwards.

    An error of the block is raised, else one of the thread.
    """
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(action)
        yield
    done.result()


@contextmanager
def local_cluster(num_nodes: int) -> Iterator[LocalCluster]:
    """Connects this process as the driver; the workers find the package."""
    root = str(Path(__file__).resolve().parents[1])
    ray.shutdown()  # the one that other modules share
    os.environ.update(FAST_RESTART)
    cluster = LocalCluster(num_nodes)
    try:
        ray.init(
            address=cluster.address,
            logging_level="warning",
            # A worker that asks for the state of its cluster would look for any on the machine.
            runtime_env={"env_vars": {"PYTHONPATH": root, "RAY_ADDRESS": cluster.address}},
        )
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
        for name in FAST_RESTART:
            del os.environ[name]
