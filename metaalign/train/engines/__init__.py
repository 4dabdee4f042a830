"""The engines that run and update a model, on DeepSpeed's ZeRO over all workers."""
