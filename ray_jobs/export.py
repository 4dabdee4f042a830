"""Exports a training run to a Hugging Face folder.

    python -m ray_jobs.export ray_jobs/configs/export.yaml storage=/DIR

Put `ray job submit --working-dir . --` before the command to run it on a cluster.
"""

from metaalign.config import ExportConfig, parse_arguments
from metaalign.pipeline.job import run_job
from metaalign.train.export import run_export

if __name__ == "__main__":
    run_job("export", run_export, parse_arguments(ExportConfig))
