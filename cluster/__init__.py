"""The driver: processes, wires, failure and the command line. The only layer that imports ray or redis."""
