"""The CUDA driver through ctypes: memory, streams, the Euler kernel, facts of a GPU."""
