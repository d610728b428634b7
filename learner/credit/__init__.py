"""Credit assignment: one strategy per file over the interface in `assignment.py`."""
