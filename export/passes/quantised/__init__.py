"""Lowering passes that put 8-bit arithmetic into a graph."""
