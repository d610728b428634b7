"""New projects: what `milepost init` writes."""
