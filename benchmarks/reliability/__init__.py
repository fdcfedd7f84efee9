"""Benchmarks of long use: memory and time over many requests."""
