"""Arithmetic of the model family: token sequence, rotary tables, latents, sizes, tiles, vision patches."""
