"""Descriptions of TensorRT plans as pure data: entries in the manifest, profiles, memory.

No module here imports TensorRT.
"""
