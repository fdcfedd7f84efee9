"""Timings of kernels in a file: what they save is minutes, and nothing about them may cost a finished engine."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import cast

from qwen_image_engine.engines.tensorrt.bindings import trt


def read_timings(config: trt.IBuilderConfig, path: Path, warnings: list[str]) -> trt.ITimingCache | None:
    """Give the builder the timings in the file, where they are of this GPU and this TensorRT; else none.

    Returns:
        The builder's timings, None where TensorRT keeps none.
    """
    try:
        data = path.read_bytes() if path.exists() else b""
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
    """Write them, whole or not at all; another build may be writing the same file."""
    if cache is None:
        return
    serialized = cast("trt.IHostMemory | None", cache.serialize())
    if serialized is None:
        warnings.append(f"{path}: timings of kernels are not kept (TensorRT gives none)")
        return
    partial: Path | None = None
    try:
        descriptor, name = tempfile.mkstemp(".partial", f".{path.name}.", path.parent)
        partial = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            # It has the buffer protocol, which the stub does not say.
            file.write(cast(bytes, serialized))
        partial.replace(path)
    except OSError as error:
        warnings.append(f"{path}: timings of kernels are not kept ({error.strerror or error})")
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)
