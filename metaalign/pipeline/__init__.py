"""The stages in order, and what every job does around its work."""
