"""Ray Train and DeepSpeed: rows in, checkpoints and Hugging Face folders out."""
