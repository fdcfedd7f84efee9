"""Scenes, prompts and edits of `shapes`, drawn."""
