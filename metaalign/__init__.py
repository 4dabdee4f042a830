"""Train and serve one language model that follows whatever preference it is told."""

__version__ = "0.1.0"
