"""The CUDA driver through ctypes: memory, streams, the solvers' kernel, properties of a GPU."""
