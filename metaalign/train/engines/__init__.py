"""Engines that take an optimizer step: one process, or DeepSpeed's ZeRO over all workers."""
