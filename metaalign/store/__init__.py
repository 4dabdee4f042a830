"""The token store: what data preparation hands to training."""
