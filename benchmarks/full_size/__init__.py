"""Exports and pictures at the released model's size."""
