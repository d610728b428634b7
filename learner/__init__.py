"""Floor 3, right: groups of trajectories make new weights. The only folder that imports deepspeed."""
