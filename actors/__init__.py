"""Rollout: policy and environment make trajectories. The only layer that imports vllm."""
