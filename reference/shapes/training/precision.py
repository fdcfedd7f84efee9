"""The dtype that training multiplies in: bf16 if the device has it, fp32 if bf16 would be emulated."""

import functools

import torch

from qwen_image_engine.runtime.system.machine import Machine


def autocast(device: str) -> torch.autocast:
    """Return a context that multiplies in `fast_dtype`."""
    dtype = fast_dtype(device)
    return torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16)


@functools.cache
def fast_dtype(device: str) -> torch.dtype:
    """Return bfloat16 on a GPU or a processor with bf16 instructions, else float32.

    On other processors oneDNN is twenty times slower in bfloat16.
    """
    if device != "cpu":
        return torch.bfloat16
    flags = Machine.here().cpu_flags or {}
    return torch.bfloat16 if flags.get("avx512_bf16") or flags.get("amx_bf16") else torch.float32
