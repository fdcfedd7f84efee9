"""Noise levels, noise, solvers, steps, and the checked inputs of a sampling run."""
