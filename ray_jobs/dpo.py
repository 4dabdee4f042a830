"""Preference training against the model's own start.

    python -m ray_jobs.dpo ray_jobs/configs/dpo.yaml storage=/DIR

With `ray job submit --working-dir . --` before it, it runs on a cluster.
"""

from metaalign.config import DPOConfig, parse_arguments
from metaalign.pipeline.job import run_job
from metaalign.train.launch.on_ray import run_dpo

if __name__ == "__main__":
    run_job("dpo", run_dpo, parse_arguments(DPOConfig))
