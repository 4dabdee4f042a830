"""What rules cannot write: responses, judgements and negatives of other models."""
