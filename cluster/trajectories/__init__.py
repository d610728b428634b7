"""Every episode of a run, as a person can read it: from the worker that played it to Parquet files and back."""
