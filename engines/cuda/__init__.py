"""The CUDA driver through ctypes: memory, streams, the Euler kernel, properties of a GPU."""
