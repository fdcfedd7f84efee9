"""Imported before diffusers or transformers, so that they import beside a CPU build of torch."""

from qwen_image_engine.reference.baselines.cpu_torchvision import leave_out_operators

leave_out_operators()
