"""Quantised weights, made from rules and statistics."""
