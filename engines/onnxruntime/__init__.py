"""The ONNX Runtime backends, on CPUs and on CUDA."""
