"""Signs of collapse and of selection bias, measured from what was played."""
