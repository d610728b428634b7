"""The numbers by which a training is watched and a policy is judged. Pure functions, for evaluation only."""
