"""The verbs of the command, one module each. Only they may import every other package, inside functions."""
