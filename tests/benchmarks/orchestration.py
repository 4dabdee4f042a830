"""What Ray, tracking and checkpoints cost: SFT under Ray Train beside the same run by torchrun.

    python -m tests.benchmarks.orchestration [--steps 100]

Two workers under ZeRO-3. Under Ray a point of every metric is logged at every step, and a
checkpoint is saved every 50 and after the last. `overhead_share` is timed in the first worker, from
the end of step 1 to the end of the run: waiting for rows, and all that is done between steps and
after the last one, the last checkpoint to its commit marker among it, as a share of that time.

`wall_clock_ratio` is of the same stretch by that of the bare run: torchrun, nothing tracked and
nothing saved, from the end of step 1 to the end of the last step. Start-up is in neither. After a
short run of each, the sides alternate twice.
"""

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from rich.console import Console

from metaalign.config import SFTConfig
from metaalign.tracking import Run, open_run
from metaalign.train.launch.driver import begin_run, prepare_task
from metaalign.train.task import Task
from tests.benchmarks.report import bar, print_report
from tests.benchmarks.timed_run import timed_run
from tests.benchmarks.workloads import HH_LIKE, write_model, write_store

VOCABULARY = 4096
STEPS = 100
WARM_UP_STEPS = 5
CHECKPOINT_EVERY = 50
ROUNDS = 2
GLOBAL_BATCH_SIZE = 16
BAR = 0.03
ROOT = Path(__file__).resolve().parents[2]
CONSOLE = Console(stderr=True)


def task_of(storage: Path, output: str, *, steps: int, save: bool) -> Task:
    """The run of a name, checked as the job checks it."""
    config = SFTConfig.model_validate(
        {
            "storage": str(storage),
            "output": output,
            "model": {"path": "base"},
            "length": {"epochs": None, "max_steps": steps},
            "batch": {"global_batch_size": GLOBAL_BATCH_SIZE, "budget": 1280, "rows": 1},
            "optimizer": {"learning_rate": 1e-4, "schedule": "constant", "warmup_ratio": 0},
            "workers": {"num_workers": 2, "gpu": "never"},
            "checkpoint": {"every_steps": CHECKPOINT_EVERY if save else None},
        }
    )
    return begin_run(prepare_task(config, "cpu"))


def under_ray(storage: Path, output: str, steps: int) -> dict[str, Any]:
    """A tracked run that saves, in Ray Train's workers."""
    task = task_of(storage, output, steps=steps, save=True)
    config = task.config
    with open_run(config.tracking, storage=config.storage, name=output) as run:
        trainer = TorchTrainer(
            work_under_ray,
            train_loop_config={"task": task.to_plain(), "run": run.address},
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(
                name=output,
                storage_path=str(storage),
                worker_runtime_env={"env_vars": {"DS_ACCELERATOR": "cpu"}},
            ),
        )
        timing: Any = trainer.fit().return_value
    return timing


def work_under_ray(settings: dict[str, Any]) -> dict[str, Any]:
    """As the job's own training function: the first worker tracks, all look for a preemption."""
    first = ray.train.get_context().get_world_rank() == 0
    tracker = Run.attach(settings["run"]) if first else None
    try:
        return timed_run(
            Task.from_plain(settings["task"]),
            tracker=tracker,
            leaving=lambda: ray.train.get_preemption_info() is not None,
        )
    finally:
        if tracker:
            tracker.flush()


def by_torchrun(storage: Path, output: str, steps: int) -> dict[str, Any]:
    """The same steps without Ray, tracker and checkpoints."""
    file = storage / f"{output}.json"
    task = task_of(storage, output, steps=steps, save=False)
    file.write_text(json.dumps(task.to_plain()), encoding="utf-8")
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, "-m", *launcher, "-m", "tests.benchmarks.timed_run", str(file)]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=2)
    return json.loads(file.with_suffix(".timing.json").read_text(encoding="utf-8"))


def compare(storage: Path, steps: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Timings of the run under Ray and of the bare one, round by round."""
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        logging_level=logging.WARNING,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    try:
        by_torchrun(storage, "bare-warm", WARM_UP_STEPS)
        under_ray(storage, "ray-warm", WARM_UP_STEPS)
        rounds = []
        for number in range(ROUNDS):
            bare = by_torchrun(storage, f"bare-{number}", steps)
            orchestrated = under_ray(storage, f"ray-{number}", steps)
            apart = abs(bare["loss"] - orchestrated["loss"])
            assert apart < 1e-4, (bare["loss"], orchestrated["loss"])
            CONSOLE.print(f"round {number}: ray {orchestrated}, bare {bare}")
            rounds.append((orchestrated, bare))
        return rounds
    finally:
        ray.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=STEPS)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory(prefix="metaalign-bench-") as folder:
        storage = Path(folder)
        groups = GLOBAL_BATCH_SIZE * (steps + 1)
        store = write_store(storage / "store", HH_LIKE, groups=groups, vocabulary=VOCABULARY)
        store.template.save(write_model(storage / "base", vocabulary=VOCABULARY))
        rounds = compare(storage, steps)
    shares = [own["overhead_s"] / own["run_s"] for own, _ in rounds]
    ratios = [own["run_s"] / bare["steps_s"] for own, bare in rounds]
    figures = {
        "ray": [own for own, _ in rounds],
        "torchrun": [bare for _, bare in rounds],
        "overhead_shares": shares,
        "wall_clock_ratio": statistics.mean(ratios),
        "wall_clock_ratios": ratios,
    }
    settings = {
        "steps": steps,
        "checkpoint_every": CHECKPOINT_EVERY,
        "global_batch_size": GLOBAL_BATCH_SIZE,
        "model": "random Llama, 256 x 4",
        "workers": 2,
    }
    share = bar(round(statistics.mean(shares), 4), BAR, at_least=False)
    print_report(settings, figures, {"overhead_share": share})


if __name__ == "__main__":
    main()
