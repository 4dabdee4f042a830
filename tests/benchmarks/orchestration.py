"""What Ray, tracking and checkpoints cost: SFT under Ray Train beside the same run by torchrun.

    python -m tests.benchmarks.orchestration

Two workers under ZeRO-3, a point of every metric at every step, a checkpoint every 50. The share is
timed in the worker: waiting for rows, and all that is done between steps.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray
import yaml

from metaalign.config import SFTConfig
from metaalign.tracking import open_run
from metaalign.train.results import read_result
from metaalign.train.trainer import run_sft
from tests.benchmarks.report import bar, print_report
from tests.benchmarks.workloads import HH_LIKE, write_model, write_store

VOCABULARY = 4096
STEPS = 150
BAR = 0.03
ROOT = Path(__file__).resolve().parents[2]


def settings_of(storage: Path, output: str) -> dict[str, Any]:
    return {
        "storage": str(storage),
        "output": output,
        "model": {"path": "base"},
        "length": {"epochs": None, "max_steps": STEPS},
        "batch": {"global_batch_size": 16, "budget": 1280, "rows": 1},
        "optimizer": {"learning_rate": 1e-4, "schedule": "constant", "warmup_ratio": 0},
        "workers": {"num_workers": 2, "gpu": "never"},
        "checkpoint": {"every_steps": 50},
    }


def under_ray(storage: Path) -> dict[str, Any]:
    """The job's own path, with a tracked run."""
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        logging_level="warning",
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    config = SFTConfig.model_validate(settings_of(storage, "ray"))
    with open_run(config.tracking, storage=config.storage, name="ray") as run:
        result = run_sft(config, run)
    ray.shutdown()
    return result


def by_torchrun(storage: Path) -> dict[str, Any]:
    """The same run, of another name, without Ray."""
    file = storage / "torchrun.yaml"
    file.write_text(yaml.safe_dump(settings_of(storage, "torchrun")), encoding="utf-8")
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    module = ["-m", "metaalign.train.standalone", "sft", str(file)]
    subprocess.run(
        [sys.executable, "-m", *launcher, *module], check=True, cwd=ROOT, env=os.environ, stdout=2
    )
    result = read_result(storage / "torchrun")
    assert result is not None
    return result


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="metaalign-bench-") as folder:
        storage = Path(folder)
        store = write_store(storage / "store", HH_LIKE, groups=2400, vocabulary=VOCABULARY)
        store.template.save(write_model(storage / "base", vocabulary=VOCABULARY))
        bare, orchestrated = by_torchrun(storage), under_ray(storage)
    assert abs(bare["loss"] - orchestrated["loss"]) < 1e-4, (bare["loss"], orchestrated["loss"])
    figures = {
        "seconds": {"ray": orchestrated["seconds"], "torchrun": bare["seconds"]},
        "wall_clock_ratio": orchestrated["seconds"] / bare["seconds"],
        "waited_share": {"ray": orchestrated["waited_share"], "torchrun": bare["waited_share"]},
        "last_loss": [orchestrated["loss"], bare["loss"]],
    }
    share = bar(round(orchestrated["waited_share"], 4), BAR, at_least=False)
    print_report({"steps": STEPS, "model": "256 x 4"}, figures, {"overhead_share": share})


if __name__ == "__main__":
    main()
