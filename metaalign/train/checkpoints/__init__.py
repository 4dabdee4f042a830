"""Checkpoints of a run: their format, how they are saved, and which are kept."""
