"""Preference training. The reference is the initial model.

    python -m ray_jobs.dpo ray_jobs/configs/dpo.yaml storage=/DIR

Put `ray job submit --working-dir . --` before the command to run it on a cluster.
"""

from metaalign.config import DPOConfig, parse_arguments
from metaalign.pipeline.job import run_job
from metaalign.train.launch.on_ray import run_dpo

if __name__ == "__main__":
    run_job("dpo", run_dpo, parse_arguments(DPOConfig))
