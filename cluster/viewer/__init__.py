"""The viewer: a run's curves, groups, episodes, turns and tokens in a browser, and in one file."""
