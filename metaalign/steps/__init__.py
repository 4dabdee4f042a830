"""Numpy only: index in, rows out."""
