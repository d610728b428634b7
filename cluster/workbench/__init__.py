"""Recorded groups scored again by any credit strategy, in tables and on a page."""
