"""From trajectories to token arrays and tensors."""
