"""The pipeline over all stages, and the frame of every job: Ray, MLflow and error reports."""
