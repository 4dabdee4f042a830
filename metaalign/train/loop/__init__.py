"""The training loop, its held-out measurements, and the reference pass before it."""
