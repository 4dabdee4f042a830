"""What a user submits: each job reads one config and calls the package."""
