"""Quantised weights, computed from rules and activation statistics."""
