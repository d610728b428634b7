"""From a trajectory to the numbers people and learners use."""
