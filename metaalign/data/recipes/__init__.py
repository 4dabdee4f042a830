"""Recipes: one example in, the examples of MetaAlign or MetaAligner out."""
