"""Helpers for onnx-ir graphs. The passes are in `export.passes`."""
