"""Floor 4: processes, wires, failure and the command line. The only folder that imports ray or redis."""
