"""Modules that several benchmarks share: environment facts, large checkpoints, measured processes."""
