"""Builds of TensorRT plans, each in a process of its own, and the audit of each plan."""
