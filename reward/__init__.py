"""Floor 2: from a trajectory to the numbers people and learners use."""
