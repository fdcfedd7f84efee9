"""Parity, the judge's figures, modes, and the quality of `bench` itself."""
