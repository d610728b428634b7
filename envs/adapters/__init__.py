"""Environments of other packages, one file per package; docs/worlds.md tells how to install and configure them."""
