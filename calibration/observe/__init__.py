"""Activation statistics: runs of the reference, observed, and the file that keeps them."""
