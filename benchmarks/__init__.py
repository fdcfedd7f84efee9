"""Benchmarks: each room's programs run from the repository's top, as in `python -m benchmarks.speed.run`."""
