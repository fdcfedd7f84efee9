"""ONNX Runtime, on CPUs and on CUDA."""
