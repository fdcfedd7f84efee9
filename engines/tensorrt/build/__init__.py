"""Builds of TensorRT plans, each in its own process, and the audit of each plan."""
