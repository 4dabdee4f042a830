"""Runs every stage in order, and skips those that have not changed.

    python -m ray_jobs.pipeline ray_jobs/configs/demo.yaml storage=/DIR

Put `ray job submit --working-dir . --` before the command to run it on a cluster.
"""

from metaalign.config import PipelineConfig, parse_arguments
from metaalign.pipeline.job import run_job
from metaalign.pipeline.run import run_pipeline

if __name__ == "__main__":
    run_job("pipeline", run_pipeline, parse_arguments(PipelineConfig))
