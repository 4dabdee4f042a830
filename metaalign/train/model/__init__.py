"""The model: loading, attention over prefix trees, and log-probs of the targets."""
