"""The dtype that training multiplies in: bf16 where the device has it, fp32 where it would be emulated."""

import functools

import torch

from qwen_image_engine.runtime.system.machine import Machine


def autocast(device: str) -> torch.autocast:
    """A context that multiplies in `fast_dtype`."""
    dtype = fast_dtype(device)
    return torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16)


@functools.cache
def fast_dtype(device: str) -> torch.dtype:
    """bfloat16 on a GPU and on processors with bf16 instructions; elsewhere oneDNN is twenty times slower in it."""
    if device != "cpu":
        return torch.bfloat16
    flags = Machine.here().cpu_flags or {}
    return torch.bfloat16 if flags.get("avx512_bf16") or flags.get("amx_bf16") else torch.float32
