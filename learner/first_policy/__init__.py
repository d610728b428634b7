"""The policy that a run begins with."""
