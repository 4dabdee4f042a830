"""The sft and dpo jobs without Ray: in one process, or in the processes of torchrun.

    python -m metaalign.train.launch.standalone sft CONFIG.yaml section.key=value ...
    torchrun --nproc-per-node 2 -m metaalign.train.launch.standalone dpo CONFIG.yaml ...

The steps, checkpoints and result equal those of the jobs under Ray, and each can continue the
other's run. The launcher sets the number of workers, not `workers.num_workers`.
"""

import argparse
import logging
import os
import signal
import sys
import traceback
from typing import Any

import torch
import torch.distributed as dist

from metaalign.config import DPOConfig, SFTConfig, load_config
from metaalign.errors import ConfigError, MetaAlignError
from metaalign.tracking import Run, open_run
from metaalign.train.engines.agreement import all_or_none, from_first
from metaalign.train.engines.starting import start_engine
from metaalign.train.launch.driver import (
    begin_run,
    prepare_task,
    result_of,
    show_plan,
    stoppable,
    track_plan,
    track_settings,
)
from metaalign.train.launch.plan_numbers import PlanNumbers
from metaalign.train.task import DeviceType, Task, TrainingConfig
from metaalign.train.worker import TrainingRun

JOBS: dict[str, Any] = {"sft": SFTConfig, "dpo": DPOConfig}


def main() -> None:
    """Read the command line, join the other processes and train."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("job", choices=sorted(JOBS))
    parser.add_argument("config", metavar="CONFIG.yaml", help="the job's settings")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    given = parser.parse_args()
    in_order = False
    try:
        config = load_config(JOBS[given.job], given.config, given.overrides)
        device_type = find_device(config)
        join_workers(device_type)
        run_standalone(config, device_type)
        in_order = True
    except MetaAlignError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        in_order = error.on_every_worker
        raise SystemExit(1) from None
    except SystemExit:  # all workers stopped
        in_order = True
        raise
    finally:
        leave_workers(in_order=in_order)


def find_device(config: TrainingConfig) -> DeviceType:
    """cuda if this machine has a GPU and `workers.gpu` allows it, otherwise cpu.

    Raises:
        ConfigError: `workers.gpu` is always, and there is no GPU.
    """
    if config.workers.gpu == "always" and not torch.cuda.is_available():
        raise ConfigError("workers.gpu always: this machine has no CUDA device; set it to auto")
    return "cuda" if torch.cuda.is_available() and config.workers.gpu != "never" else "cpu"


def join_workers(device_type: DeviceType) -> None:
    """Join the process group of torchrun. Without torchrun, make one of this process alone."""
    os.environ.setdefault("DS_ACCELERATOR", device_type)
    backend = "nccl" if device_type == "cuda" else "gloo"
    if device_type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if "RANK" in os.environ:
        dist.init_process_group(backend)
    else:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")  # DeepSpeed reads them
        alone = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
        dist.init_process_group(backend, store=alone, rank=0, world_size=1)


def leave_workers(*, in_order: bool) -> None:
    """Leave the process group. A worker that failed alone ends its process at once.

    Otherwise the other workers could wait for it in a collective, and its own threads for them,
    for half an hour. torchrun ends the other processes as soon as this one has ended.

    Args:
        in_order: Whether all workers leave together.
    """
    if not dist.is_initialized():
        return
    if in_order or dist.get_world_size() == 1:
        dist.destroy_process_group()
        return
    error = sys.exc_info()[1]
    if not isinstance(error, SystemExit):
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def run_standalone(config: TrainingConfig, device_type: DeviceType) -> dict[str, Any]:
    """Train, and return the content of result.json. Every process of the group must call it.

    Raises:
        MetaAlignError: a check failed before training started, or training stopped with an error.
    """
    workers = config.workers.model_copy(update={"num_workers": dist.get_world_size()})
    config = config.model_copy(update={"workers": workers})
    first = dist.get_rank() == 0
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("metaalign").setLevel(logging.INFO if first else logging.WARNING)
    task, numbers = _same_task(config, device_type)
    torch.set_num_threads(max(1, int(config.workers.cpus_per_worker)))
    device = torch.device(device_type, torch.cuda.current_device() if device_type == "cuda" else 0)
    engine = start_engine(task, device)
    run = all_or_none(lambda: _open_run(task) if first else None)
    if run is None:
        # torchrun sends SIGTERM to every process. Only the first handles it, and makes all workers
        # save and stop.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return TrainingRun(task, engine, tracker=None).run()
    with run, stoppable(task):
        track_settings(run, task)
        track_plan(task, numbers, run)
        return result_of(task, TrainingRun(task, engine, tracker=run).run())


def _open_run(task: Task) -> Run:
    config, name = task.config, task.config.output
    resume_key = f"{task.job}/{name}"
    return open_run(config.tracking, storage=config.storage, name=name, resume_key=resume_key)


def _same_task(config: TrainingConfig, device_type: DeviceType) -> tuple[Task, PlanNumbers]:
    """Prepare the task on the first process and send it to all. All raise if the first fails."""

    def prepare() -> tuple[dict[str, Any], PlanNumbers]:
        task = begin_run(prepare_task(config, device_type))
        return task.to_plain(), show_plan(task)

    plain, numbers = from_first(prepare)
    return Task.from_plain(plain), numbers


if __name__ == "__main__":
    main()
