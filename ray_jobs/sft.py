"""Supervised fine-tuning on the best response.

    python -m ray_jobs.sft ray_jobs/configs/sft.yaml storage=/DIR

Put `ray job submit --working-dir . --` before the command to run it on a cluster.
"""

from metaalign.config import SFTConfig, parse_arguments
from metaalign.pipeline.job import run_job
from metaalign.train.launch.on_ray import run_sft

if __name__ == "__main__":
    run_job("sft", run_sft, parse_arguments(SFTConfig))
