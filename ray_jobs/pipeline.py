"""Every stage in order; what has not changed is not run again.

    python -m ray_jobs.pipeline ray_jobs/configs/demo.yaml storage=/DIR

With `ray job submit --working-dir . --` before it, it runs on a cluster.
"""

from metaalign.config import PipelineConfig, parse_arguments
from metaalign.pipeline.job import run_job
from metaalign.pipeline.run import run_pipeline

if __name__ == "__main__":
    run_job("pipeline", run_pipeline, parse_arguments(PipelineConfig))
