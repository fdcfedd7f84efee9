"""Benchmarks. Run their programs from the top of the repository, for example `python -m benchmarks.speed.run`."""
