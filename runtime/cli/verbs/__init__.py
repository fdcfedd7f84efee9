"""The verbs of the command, one module each. They alone import every other package, and lazily."""
