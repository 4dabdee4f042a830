"""Evaluates models on held-out examples and cases, and writes rates, tables and plots.

    python -m ray_jobs.evaluate ray_jobs/configs/evaluate.yaml storage=/DIR

Put `ray job submit --working-dir . --` before the command to run it on a cluster.
"""

from metaalign.config import EvaluateConfig, parse_arguments
from metaalign.evaluate.suites import run_evaluate
from metaalign.pipeline.job import run_job

if __name__ == "__main__":
    run_job("evaluate", run_evaluate, parse_arguments(EvaluateConfig))
