"""Estimates of time, memory and disk, before anything runs (`qwen-image plan`)."""
