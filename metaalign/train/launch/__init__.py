"""The sft and dpo jobs: the driver's checks, then workers under Ray Train or torchrun, or one
process."""
