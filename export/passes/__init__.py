"""Lowering passes, one class a module."""
