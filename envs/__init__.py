"""The world an agent acts in, and the words for what happens there: environments, tasks, trajectories."""
