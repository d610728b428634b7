"""Adapters that travel in place of whole weights, and how they join their base."""
