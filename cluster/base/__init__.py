"""What every room of the driver stands on: why a program ends, and child processes that end with it."""
