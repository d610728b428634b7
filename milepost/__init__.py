"""Milepost: reinforcement learning for LLM agents on whole trajectories, credited by state transition.

No code lives here: `milepost.envs`, `.reward`, `.actors`, `.learner` and `.cluster` are the folders beside this one.
"""

__version__ = "0.1.0"
