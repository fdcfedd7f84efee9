"""Noise levels, noise, the Euler step, and the checked inputs of a request."""
