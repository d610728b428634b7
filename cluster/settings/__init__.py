"""The configuration of a run: its sections, its file, and overrides on the command line."""
