"""What a run leaves to look at: its folder, records, metrics, console and report."""
