"""Helpers on onnx-ir graphs. No pass stands here."""
