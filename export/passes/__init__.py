"""Lowering passes, each module with one rewrite of the graph."""
