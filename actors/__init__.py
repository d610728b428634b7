"""Floor 3, left: policy and environment make trajectories. The only folder that imports vllm."""
