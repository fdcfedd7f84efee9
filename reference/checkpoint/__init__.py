"""A checkpoint in a folder or in the hub's cache: its configurations and checks."""
