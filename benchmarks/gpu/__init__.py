"""Parity and speed on a GPU: `sh benchmarks/gpu.sh`."""
