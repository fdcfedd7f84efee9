"""Benchmarks of speed: times of steps, pictures and operators on CPUs."""
