"""Fixed scenarios, what a policy did on them, and whether two policies differ: files in, numbers and verdicts out."""
