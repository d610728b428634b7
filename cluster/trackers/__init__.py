"""Experiment trackers that are told what a run measures, where the configuration names them."""
