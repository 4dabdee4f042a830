"""Serves a Hugging Face folder at POST /v1/chat/completions, until it is stopped.

    python -m ray_jobs.serve ray_jobs/configs/serve.yaml storage=/DIR

Put `ray job submit --working-dir . --` before the command to run it on a cluster.
"""

from metaalign.config import ServeConfig, parse_arguments
from metaalign.pipeline.job import connect, reported
from metaalign.serve.app import run_serve

if __name__ == "__main__":
    with reported():
        config = parse_arguments(ServeConfig)
        connect()
        run_serve(config)
