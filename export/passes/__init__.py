"""Lowering passes, each module with one rewrite of the graph. `export.lowering` has their order."""
