"""Models under DeepSpeed ZeRO, and their checkpoints."""
