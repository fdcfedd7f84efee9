"""Stored tensors: safetensors files, blocks of tensors, merged tensors and single files."""
