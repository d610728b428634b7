"""Weights from the learner to all engines at once: vLLM's NCCL backend, both ends, with deadlines."""
