"""Benchmarks of quality: parity, the judge's figures, modes, and the accuracy of `bench`."""
