"""Scales for quantised graphs; empty until the first quantised precision."""
