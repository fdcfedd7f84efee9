"""Scenes of `shapes`: their drawings, prompts, edits and instructions."""
