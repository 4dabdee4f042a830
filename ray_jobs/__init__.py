"""The jobs that a user submits. Each reads one config and calls the package."""
