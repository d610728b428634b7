"""What every room of the driver stands on: why a program ends, where its words go, children that end with it."""
