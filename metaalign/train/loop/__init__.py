"""The training loop, what it measures, and the reference pass before it."""
