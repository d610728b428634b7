"""Training: groups of trajectories make new weights. The only layer that imports deepspeed."""
