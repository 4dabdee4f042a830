"""Responses, judgements and negatives that other models write."""
