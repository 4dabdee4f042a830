"""The model: loading it, its attention over prefix trees, and the log-probs that it gives."""
