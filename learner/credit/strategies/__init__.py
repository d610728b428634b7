"""The credit strategies, one file each, and their registry."""
