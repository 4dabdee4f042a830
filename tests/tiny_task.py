"""A training job small enough for a test, and processes that work on it together."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metaalign.config import DPOConfig, SFTConfig
from metaalign.folders import weights_fingerprint
from metaalign.store.token_store import TokenStore
from metaalign.train.model.loading import prepare_initial
from metaalign.train.task import Task

ARCHITECTURE = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def settings_of(storage: Path, **changed: Any) -> dict[str, Any]:
    """Settings of a job of six steps at a learning rate that shows in every digit."""
    return {
        "storage": str(storage),
        "model": {"architecture": ARCHITECTURE},
        "length": {"epochs": None, "max_steps": 6},
        "batch": {"global_batch_size": 7, "budget": 192, "rows": 2},
        "optimizer": {"learning_rate": 1e-3, "weight_decay": 0.1},
        "zero": {"persistence_threshold": 0},
        "workers": {"num_workers": 2},
        **changed,
    }


def tiny_task(
    storage: Path,
    make_store: Callable[..., TokenStore],
    job: str = "sft",
    *,
    context: int = 256,
    **changed: Any,
) -> Task:
    """A job over a small real store; `changed` replaces whole sections."""
    path = storage / "store"
    store = TokenStore.open(path) if path.is_dir() else make_store(path)
    model = {"sft": SFTConfig, "dpo": DPOConfig}[job]
    config = model.model_validate(settings_of(storage, **changed))
    initial = prepare_initial(
        config.model, store.template, storage / "initial", storage=str(storage)
    )
    return Task(
        config=config,
        initial=str(initial),
        weights=weights_fingerprint(initial),
        context=context,
        layout="tree",
        attention="sdpa",
        dtype="float32",
        device_type="cpu",
    )


def run_workers(
    scenario: str, tasks: list[Task], folder: Path, *, world_size: int = 2, timeout_s: int = 300
) -> list[dict[str, Any]]:
    """Run a function of `worker_scenarios` in processes of one thread; what each returned."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "tasks.json").write_text(json.dumps([task.to_plain() for task in tasks]))
    root = Path(__file__).resolve().parents[1]
    processes = []
    for rank in range(world_size):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "OMP_NUM_THREADS": 1}
        own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_WORLD_SIZE": world_size}
        own |= {"DS_ACCELERATOR": "cpu", "PYTHONPATH": root}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "tests.worker_scenarios", scenario, str(folder)],
                env=os.environ | {key: str(value) for key, value in own.items()},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        outputs = [process.communicate(timeout=timeout_s)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    codes = [process.returncode for process in processes]
    assert codes == [0] * world_size, "\n".join(outputs)[-6000:]
    return [
        json.loads((folder / f"{scenario}-{rank}.json").read_text()) for rank in range(world_size)
    ]
