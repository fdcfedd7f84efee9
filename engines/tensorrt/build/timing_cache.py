"""The timing cache of kernels in a file. It saves minutes, and no error of the file may cost a finished engine."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from qwen_image_engine.engines.core.files import read_regular, whole_file
from qwen_image_engine.engines.tensorrt.bindings import trt

_MAX_BYTES = 1 << 30


def read_timings(config: trt.IBuilderConfig, path: Path, warnings: list[str]) -> trt.ITimingCache | None:
    """Give the builder the timings in the file if they are from this GPU and this TensorRT; otherwise an empty cache.

    Returns:
        The builder's timing cache; None if TensorRT makes none.
    """
    try:
        data = read_regular(path, _MAX_BYTES) if path.exists() else b""
    except OSError as error:
        warnings.append(f"{path}: timings of kernels cannot be read ({error.strerror or error})")
        data = b""
    for contents in dict.fromkeys((data, b"")):
        # None for bytes that are no cache, which the stub does not say.
        cache = cast("trt.ITimingCache | None", config.create_timing_cache(contents))
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
    return None


def keep_timings(cache: trt.ITimingCache | None, path: Path, warnings: list[str]) -> None:
    """Write the timings atomically: another build may be writing the same file."""
    if cache is None:
        return
    serialized = cast("trt.IHostMemory | None", cache.serialize())
    if serialized is None:
        warnings.append(f"{path}: timings of kernels are not kept (TensorRT gives none)")
        return
    try:
        with whole_file(path) as file:
            # It has the buffer protocol, which the stub does not say.
            file.write(cast(bytes, serialized))
    except OSError as error:
        warnings.append(f"{path}: timings of kernels are not kept ({error.strerror or error})")
