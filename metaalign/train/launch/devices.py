"""Chooses the workers' device, and checks that the Ray cluster has room for them."""

import logging

import ray

from metaalign.config.sections import WorkersConfig
from metaalign.errors import ConfigError
from metaalign.train.task import DeviceType

logger = logging.getLogger(__name__)


def choose_device(workers: WorkersConfig) -> DeviceType:
    """cpu or cuda. The cluster has room now for the smallest number of workers on this device.

    Only `workers.gpu: always` waits for nodes that an autoscaler has not started yet.

    Raises:
        ConfigError: the cluster has too few CPUs or GPUs.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    on_gpus = workers.gpu == "always" or (workers.gpu == "auto" and gpus > 0)
    device: DeviceType = "cuda" if on_gpus else "cpu"
    fewest = workers.min_workers
    if workers.gpu == "auto" and 0 < gpus < fewest:
        raise ConfigError(
            f"workers.num_workers {fewest}: each takes a GPU, and the cluster has "
            f"{gpus}; lower it, or set workers.gpu to never, or to always if an autoscaler will "
            "start nodes with GPUs"
        )
    each = workers.cpus_per_worker
    by_cpu = [int(node.get("CPU", 0) / each + 1e-6) for node in nodes]
    by_gpu = [int(node.get("GPU", 0)) for node in nodes] if on_gpus else by_cpu
    room = sum(map(min, by_cpu, by_gpu))
    if room >= fewest:
        return device
    if workers.gpu == "always":
        logger.warning("waiting for nodes: %d of %d workers have room now", room, fewest)
        return device
    raise ConfigError(
        f"workers.num_workers {fewest} at workers.cpus_per_worker {each:g} takes "
        f"{fewest * each:g} CPUs, and the cluster has "
        f"{sum(node.get('CPU', 0) for node in nodes):g} on {len(nodes)} node(s), with room for "
        f"{room} such worker(s); lower one of these settings"
    )
