"""Writes a token store from files and recipes.

    python -m ray_jobs.prepare ray_jobs/configs/prepare.yaml storage=/DIR

Put `ray job submit --working-dir . --` before the command to run it on a cluster.
"""

from metaalign.config import PrepareConfig, parse_arguments
from metaalign.data.prepare import run_prepare
from metaalign.pipeline.job import run_job

if __name__ == "__main__":
    run_job("prepare", run_prepare, parse_arguments(PrepareConfig))
