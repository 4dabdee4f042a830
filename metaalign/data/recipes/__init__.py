"""Recipes turn one example into the examples of MetaAlign or MetaAligner."""
