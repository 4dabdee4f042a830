"""A Ray cluster of several nodes on this machine, whose nodes and workers can be lost."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason

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

    def lose_node(self) -> None:
        """All processes of the newest node are killed."""
        self._cluster.remove_node(self._nodes.pop(), allow_graceful=False)

    def preempt_node(self, notice_s: float) -> None:
        """Announce that the newest node will be taken away in so many seconds."""
        deadline_ms = int((time.time() + notice_s) * 1000)
        client = GcsClient(address=self._cluster.gcs_address)
        preemption = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        accepted, reason = client.drain_node(
            self._nodes[-1].node_id, preemption, "preempted by a test", deadline_ms
        )
        assert accepted, reason

    def kill_worker(self) -> bool:
        """SIGKILL one of Ray Train's workers on these nodes; False where there is none."""
        raylets = {
            info.process.pid
            for node in self._cluster.list_all_nodes()
            for info in node.all_processes.get("raylet", [])
        }
        for process in sorted(Path("/proc").glob("[0-9]*"), reverse=True):
            if _is_worker(process, raylets):
                os.kill(int(process.name), signal.SIGKILL)
                return True
        return False

    def shutdown(self) -> None:
        self._cluster.shutdown()


def _is_worker(process: Path, raylets: set[int]) -> bool:
    try:
        name = (process / "cmdline").read_bytes()
        parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError):
        return False
    return name.startswith(b"ray::RayTrainWorker") and parent in raylets


@contextmanager
def local_cluster(num_nodes: int) -> Iterator[LocalCluster]:
    """Connects this process as the driver; the workers find the package."""
    root = str(Path(__file__).resolve().parents[1])
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
