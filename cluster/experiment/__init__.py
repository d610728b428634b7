"""Comparisons: every arm with every seed, and the table they make."""
